"""The small model of the procedural world, which ships with the package: 25 frames of 96 x 96.

    ltx-sample --config shapes --prompt "a small red star moves left"

Takes seconds on a CPU. The model knows the shapes, colours and motions of
ltx_jax/world/scenes.py, described as in ltx_jax/world/grammar.py. `ltx-export ... --settings`
stores these settings beside the weights, so that ltx-sample, the web page and the pipeline take
them without this file.
"""

from ltx_jax.config import SampleConfig

config = SampleConfig(
    checkpoint="embedded:shapes",
    negative_prompt="",
    height=96,
    width=96,
    num_frames=25,
    frame_rate=24.0,
    num_inference_steps=16,
    guidance_scale=3.0,
    stg_scale=0.0,
    image_cond_noise_scale=0.0,
    prepare_conditions=False,
    dtype="float32",
    sheet=True,
)
