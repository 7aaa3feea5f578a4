# A network from before the edit, and one that starts from its weights: two steps, then two more.
tiny=configs/shapes_tiny_transformer.py
$PYTHON train.py configs/shapes_tiny_vae.py --run.steps 2
$PYTHON train.py $tiny --run.output runs/old --run.steps 2
train="$PYTHON train.py $tiny --model.camera --run.init_from runs/old"
train="$train --run.init_missing camera --run.init_settings camera --run.validate_every 2"
$train --run.steps 2
$train --run.steps 4
$train --run.output runs/unchanged --run.steps 1 --optim.peak_lr 0

# Stored latents hold the camera's motion if the network takes it; others are refused.
encode="$PYTHON -m ltx_jax.encode $tiny --examples 16"
$encode --model.camera --output encoded
$train --data.source encoded --run.validation_source encoded --run.output runs/encoded --run.steps 4
$encode --output bare
(! $train --data.source bare --run.output runs/bare) 2>&1 | grep "takes the input 'camera' and not all of the data"

# Another motion of the camera gives another video, except by a network that has not learned it.
sample() {
  $PYTHON sample.py --checkpoint runs/$1 --height 16 --width 16 --num_frames 5 --dtype float32 \
    --num_inference_steps 2 --prompt "a red circle" --save_latents $1_$2.npy --camera $2
}
for run in shapes_tiny_transformer encoded unchanged; do sample $run left; sample $run right; done
sample old None
(! sample old left) 2>&1 | grep "takes no input 'camera'"
$PYTHON $HERE/check.py
