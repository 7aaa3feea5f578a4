"""Decodes latents and also returns what happens inside: the inputs of the decoder's convolutions,
and the outputs of its blocks. The networks themselves know nothing about it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from ltx_jax.models.convolution import compiler_options
from ltx_jax.models.vae import Noise, VideoVAE
from ltx_jax.models.vae_blocks import Conv, MidBlock, PointConv

# (path of a convolution, its input) -> the parameters that it is computed with
Refit = Callable[[str, Array], Any]


class Decoded(NamedTuple):
    """The result of decoding.

    Attributes:
      video: the pixels (b, t, h, w, 3).
      features: the output (b, t, h, w, c) of every block of residual blocks of one width, by name,
        in the decoder's order.
    """

    video: Any
    features: dict[str, Any]


def decode_with_features(
    vae: VideoVAE,
    params: Any,
    latents: Float[Array, "b t h w c"],
    timestep: Float[Array, " b"],
    noise: Noise | None,
) -> Decoded:
    """Decodes unnormalised latents; arguments as in `VideoVAE.decode`."""
    features: dict[str, Any] = {}

    def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if isinstance(context.module, MidBlock) and context.method_name == "__call__":
            features[context.module.path[-1]] = result
        return result

    with nn.intercept_methods(keep):
        video = vae.apply({"params": params}, latents, timestep, noise, method="decode")
    return Decoded(video, features)


def convolution_inputs(
    vae: VideoVAE,
    params: Any,
    latents: Float[Array, "b t h w c"],
    timestep: Float[Array, " b"],
    noise: Noise | None,
    refit: Refit | None = None,
) -> dict[str, Any]:
    """The inputs of the decoder's convolutions by path ("up_blocks_0/res_blocks_0/conv1"), in the
    order of computation.

    Args:
      vae: a network without rematerialisation.
      params: its parameters.
      latents: as in `VideoVAE.decode`.
      timestep: as in `VideoVAE.decode`.
      noise: as in `VideoVAE.decode`.
      refit: supplies the parameters of each convolution in place of those in `params`, when its
        input is known.
    """
    inputs: dict[str, Any] = {}

    def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, (part, *path) = context.module, context.module.path or ("",)
        is_convolution = isinstance(module, Conv | PointConv) and part == "decoder"
        if not is_convolution or context.method_name != "__call__":
            return call(*args, **kwargs)
        name, x = "/".join(path), args[0]
        inputs[name] = x
        if refit is None:
            return call(*args, **kwargs)
        alone = jax.jit(module.clone(parent=None).apply, compiler_options=compiler_options())
        return alone({"params": refit(name, x)}, x)

    with nn.intercept_methods(keep):
        vae.apply({"params": params}, latents, timestep, noise, method="decode")
    return inputs
