"""Samples the tiny model in two passes, enlarged in between by the upsampler that was trained."""

from ltx_jax.config import SampleConfig, SamplingConfig

steps = dict(num_inference_steps=2, guidance_scale=1.0, stg_scale=0.0, num_frames=5)
config = SampleConfig(
    checkpoint="runs/shapes_tiny_transformer",
    spatial_upscaler="runs/shapes_tiny_upsampler",
    downscale_factor=0.5,
    second_pass=SamplingConfig(skip_initial_inference_steps=1, **steps),
    height=16,
    width=16,
    **steps,
)
