$PYTHON train.py configs/shapes_tiny_vae.py --run.steps 2
$PYTHON train.py configs/shapes_tiny_transformer.py --run.steps 2
train="$PYTHON train.py configs/shapes_tiny_upsampler.py"
$train --run.steps 2
$train --run.steps 4
$train --evaluate --run.steps 4
$train --run.steps 4 --run.output runs/without_a_break
$PYTHON -m ltx_jax.export runs/shapes_tiny_upsampler exported
$PYTHON $HERE/check.py
sample="$PYTHON sample.py --config $HERE/two_pass.py"
$sample --prompt "a red circle" --output_path of_the_run.mp4
$sample --prompt "a red circle" --output_path exported.mp4 --spatial_upscaler exported/upsampler.safetensors
