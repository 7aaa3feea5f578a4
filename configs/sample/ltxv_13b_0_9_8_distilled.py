"""LTX-Video 13B 0.9.8, distilled: seven and three steps in two passes, no guidance.

  ltx-sample --config ltxv_13b_0_9_8_distilled --prompt "A red car ..."

Download ltxv-13b-0.9.8-distilled.safetensors from the Hugging Face repository
Lightricks/LTX-Video into the working folder, or set --checkpoint to its path. Its weights have
their own licence. Between the two passes, the latent upsampler enlarges the video:
ltxv-spatial-upscaler-0.9.8.safetensors, from the same repository. In one pass:
`--spatial_upscaler None --timesteps 1 .9937 .9875 .9812 .975 .9094 .725 .4219`.
"""

from ltx_jax.config import SampleConfig, SamplingConfig

config = SampleConfig(
    checkpoint="ltxv-13b-0.9.8-distilled.safetensors",
    text_encoder="PixArt-alpha/PixArt-XL-2-1024-MS",
    spatial_upscaler="ltxv-spatial-upscaler-0.9.8.safetensors",
    timesteps=(1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725),
    guidance_scale=1.0,
    stg_scale=0.0,
    rescaling_scale=1.0,
    second_pass=SamplingConfig(
        timesteps=(0.9094, 0.725, 0.4219),
        guidance_scale=1.0,
        stg_scale=0.0,
        rescaling_scale=1.0,
        tone_map_compression_ratio=0.6,
    ),
)
