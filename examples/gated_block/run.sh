$PYTHON train.py configs/shapes_tiny_vae.py --run.steps 2
train="$PYTHON train.py configs/shapes_tiny_transformer.py --model.feed_forward swiglu"
$train --run.steps 2
$train --run.steps 4
$PYTHON sample.py --checkpoint runs/shapes_tiny_transformer --height 16 --width 16 --num_frames 5 \
  --num_inference_steps 2 --prompt "a red circle" --output_path gated.mp4
$PYTHON -m ltx_jax.export runs/shapes_tiny_transformer exported
$PYTHON sample.py --checkpoint exported --height 16 --width 16 --num_frames 5 \
  --num_inference_steps 2 --prompt "a red circle" --output_path again.mp4
