"""LTX-Video 13B 0.9.7, the full model: two passes, guidance that changes from step to step.

  ltx-sample --config ltxv_13b_0_9_7_dev --prompt "A red car ..."

Download ltxv-13b-0.9.7-dev.safetensors from the Hugging Face repository Lightricks/LTX-Video into
the working folder, or set --checkpoint to its path. Its weights have their own licence. Between
the two passes, the latent upsampler enlarges the video: ltxv-spatial-upscaler-0.9.7.safetensors,
from the same repository. `--spatial_upscaler None` samples in one pass.
"""

from ltx_jax.config import SampleConfig, SamplingConfig

config = SampleConfig(
    checkpoint="ltxv-13b-0.9.7-dev.safetensors",
    text_encoder="PixArt-alpha/PixArt-XL-2-1024-MS",
    spatial_upscaler="ltxv-spatial-upscaler-0.9.7.safetensors",
    num_inference_steps=30,
    skip_final_inference_steps=3,
    guidance_scale=(1.0, 1.0, 6.0, 8.0, 6.0, 1.0, 1.0),
    cfg_star_rescale=True,
    stg_scale=(0.0, 0.0, 4.0, 4.0, 4.0, 2.0, 1.0),
    rescaling_scale=(1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0),
    skip_block_list=((), (11, 25, 35, 39), (22, 35, 39), (28,), (28,), (28,), (28,)),
    guidance_timesteps=(1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618),
    second_pass=SamplingConfig(
        num_inference_steps=30,
        skip_initial_inference_steps=17,
        guidance_scale=1.0,
        cfg_star_rescale=True,
        stg_scale=1.0,
        rescaling_scale=1.0,
        skip_block_list=(27,),
    ),
)
