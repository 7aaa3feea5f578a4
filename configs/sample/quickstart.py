"""The clip that `make sample` fitted a tiny model to; it knows no other.

python sample.py --config configs/sample/quickstart.py
"""

from ltx_jax.config import SampleConfig

config = SampleConfig(
    checkpoint="runs/quickstart/transformer",
    prompt="A red star moves to the right on a slate background.",
    height=64,
    width=64,
    num_frames=17,
    frame_rate=16.0,
    num_inference_steps=20,
    guidance_scale=1.0,
    stg_scale=0.0,
    rescaling_scale=1.0,
    dtype="float32",
)
