# The same embeddings as transformers' Llama, whose folder is also the frozen encoder below.
$PYTHON $HERE/check.py llama
$PYTHON train.py configs/shapes_tiny_vae.py --run.steps 2
# Trained with the transformer, over bytes.
train="$PYTHON train.py $HERE/llama_tiny.py"
$train --run.steps 2
$train --run.steps 4
sample="$PYTHON sample.py --height 16 --width 16 --num_frames 5 --num_inference_steps 2"
$sample --checkpoint runs/shapes_tiny_transformer --prompt "a red circle" --output_path trained.mp4
$PYTHON -m ltx_jax.export runs/shapes_tiny_transformer exported
$sample --checkpoint exported --prompt "a red circle" --output_path exported.mp4
# Frozen, its embeddings stored with the data.
cached="$HERE/llama_tiny.py --captions cached --text_encoder_path llama"
$PYTHON -m ltx_jax.encode $cached --output latents --examples 16
train="$PYTHON train.py $cached --data.source latents --run.output runs/cached"
$train --run.steps 2
$train --run.steps 4
$sample --checkpoint runs/cached --text_encoder llama --prompt "a red circle" --output_path cached.mp4
