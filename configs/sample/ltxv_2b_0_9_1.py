"""LTX-Video 2B 0.9.1: the first with a denoising decoder.

  ltx-sample --config ltxv_2b_0_9_1 --prompt "A red car ..."

Download ltx-video-2b-v0.9.1.safetensors from the Hugging Face repository Lightricks/LTX-Video
into the working folder, or set --checkpoint to its path. Its weights have their own licence.
"""

from ltx_jax.config import SampleConfig

config = SampleConfig(
    checkpoint="ltx-video-2b-v0.9.1.safetensors",
    text_encoder="PixArt-alpha/PixArt-XL-2-1024-MS",
    num_inference_steps=40,
    guidance_scale=3.0,
    stg_scale=1.0,
    rescaling_scale=0.7,
    skip_block_list=(19,),
)
