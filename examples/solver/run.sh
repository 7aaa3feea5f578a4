$PYTHON $HERE/check.py
$PYTHON sample.py --prompt "a small red star moves left" --solver heun --num_inference_steps 4 --output_path star.mp4
