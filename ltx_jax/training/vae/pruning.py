"""Makes a narrow decoder out of a wide one: keeps the channels that best explain the others.

All layers that read or write the same channels (a *stream*: what the residual blocks of one width
add to, or what lies between the two convolutions of a block) have to keep the same ones. They are
the pivots of a QR decomposition of the stream's activations, as its readers see them: after norm
and SiLU. A convolution of the narrow decoder receives fewer channels A' than that of the wide one,
A; the least-squares solution M of A' M = A is folded into its kernel. The layers are refitted in
the order of computation, each to the activations that the narrow layers before it really make, so
that a norm over fewer channels, and the errors of those layers, are compensated as far as possible.

If the channels that are dropped depend linearly on those that stay, and norms over both are equal,
the narrow decoder computes the same.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from ltx_jax.checkpoints import keys
from ltx_jax.config import ExecutionConfig, VAEConfig
from ltx_jax.models import convolution
from ltx_jax.models.layers import sinusoidal_embedding
from ltx_jax.models.vae import STRIDES, VideoVAE
from ltx_jax.models.vae_taps import convolution_inputs, decode_with_features
from ltx_jax.runtime import sharding
from ltx_jax.training.vae.loss import DecoderInputs
from ltx_jax.training.warm_start import flat_tensors, nested_tensors

# (activations (n, c), how many channels to keep) -> indices of the channels, ascending
Choose = Callable[[Float[np.ndarray, "n c"], int], Int[np.ndarray, " k"]]

_ROWS = 4096  # positions of a layer at which activations are compared
_TIMES = 256  # noise levels at which the embeddings of noise levels are compared
_RELATIVE_ZERO = 1e-7  # singular values below this fraction of the largest one count as zero


class Pruned(NamedTuple):
    """A narrow decoder.

    Attributes:
      decoder: its parameters.
      projections: for each block of `Decoded.features`, a matrix (k, c) that maps its features to
        those of the wide decoder, by least squares.
    """

    decoder: Any
    projections: dict[str, Float[np.ndarray, "k c"]]


def check_prunable(large: VAEConfig, small: VAEConfig) -> None:
    """Checks that one decoder can be pruned to the other.

    Raises:
      ValueError: if they differ in more than their width, or have blocks with attention.
    """
    if any(block.name == "attn_res_x" for block in large.decoder_blocks):
        raise ValueError("decoders with attention (attn_res_x) cannot be pruned")
    width = small.decoder_base_channels
    pair = large.explicit(), small.explicit()
    for field in dataclasses.fields(VAEConfig):
        old, new = (getattr(cfg, field.name) for cfg in pair)
        if field.name != "decoder_base_channels" and old != new:
            raise ValueError(
                f"a smaller decoder may differ from that of its VAE in decoder_base_channels "
                f"alone: {field.name} is {new!r}, and {old!r} in the VAE"
            )
    if width > large.decoder_base_channels:
        raise ValueError(
            f"model.decoder_base_channels is {width}, more than the VAE's "
            f"{large.decoder_base_channels}: a smaller decoder is not wider"
        )


def leading_channels(activations: Float[np.ndarray, "n c"], count: int) -> Int[np.ndarray, " k"]:
    """The first `count` pivots of a QR decomposition: each is the channel with the largest part
    that the ones before it do not explain."""
    triangle = np.linalg.qr(activations, mode="r")  # has the same pivots, and few rows
    *_, pivots = scipy.linalg.qr(triangle, mode="r", pivoting=True)
    return np.sort(np.asarray(pivots)[:count])


def prune_decoder(
    large: VAEConfig,
    params: Any,
    small: VAEConfig,
    inputs: DecoderInputs,
    choose: Choose = leading_channels,
) -> Pruned:
    """Prunes a decoder.

    Args:
      large: the VAE with the wide decoder.
      params: its parameters, on one device.
      small: the same VAE with a narrow decoder.
      inputs: latents with noise, their noise levels, and noise maps, to measure activations on.
      choose: says which channels of a stream to keep.

    Raises:
      ValueError: as `check_prunable` does.
    """
    check_prunable(large, small)
    layers = _layers(large)
    wide = {k: np.asarray(v, np.float32) for k, v in flat_tensors(params["decoder"])}
    shapes = dict(flat_tensors(sharding.unbox(keys.vae_boxed(small))["decoder"]))
    execution = ExecutionConfig()
    tap = jax.jit(
        lambda params, inputs: _sampled(
            convolution_inputs(VideoVAE(large, execution), params, *_arguments(inputs))
        ),
        compiler_options=convolution.compiler_options(),
    )
    activations = {k: np.asarray(v, np.float64) for k, v in tap(params, inputs).items()}
    kept = _kept_channels(layers, activations, wide, shapes, choose)
    times = np.linspace(0.0, float(np.max(inputs.times)), _TIMES)
    embedded = _embedders(layers, kept, wide, shapes, times)
    narrow = {
        path: embedded[path] if path in embedded else _sliced(path, wide[path], kept, layers)
        for path in shapes
    }

    def refit(path: str, x: jax.Array) -> dict[str, jax.Array]:
        rows = np.asarray(_sample(x), np.float64)
        layer = layers[path]
        mixing = _least_squares(rows, activations[path])
        kernel = _folded(layer, wide[f"{path}/kernel"], mixing, kept)
        narrow[f"{path}/kernel"] = kernel.astype(np.float32)
        return {name: jnp.asarray(narrow[f"{path}/{name}"]) for name in ("kernel", "bias")}

    rest = {name: part for name, part in params.items() if name != "decoder"}
    vae = VideoVAE(small, execution)
    convolution_inputs(vae, {**rest, "decoder": nested_tensors(narrow)}, *_arguments(inputs), refit)
    decoder = nested_tensors(narrow)
    return Pruned(decoder, _projections(large, params, small, {**rest, "decoder": decoder}, inputs))


class _Layer(NamedTuple):
    """A convolution of the decoder, by the streams that it connects.

    Attributes:
      source: the stream that it reads; None for the latents.
      target: the stream that it writes; None for the pixels.
      cell: how many positions of the target each output position becomes: the outputs are
        (channel, position in the cell).
      residual: whether the input is added to the output, its channels spread over the cell.
      tap: which frame of the kernel stands at the output's own frame.
    """

    source: str | None
    target: str | None
    cell: int = 1
    residual: bool = False
    tap: int = 1


def _layers(cfg: VAEConfig) -> dict[str, _Layer]:
    """The convolutions of a decoder by path."""
    tap = 2 if cfg.causal_decoder else 1
    stream = "conv_in"
    layers = {"conv_in": _Layer(None, stream)}
    for i, block in enumerate(cfg.decoder_blocks[::-1]):
        name = f"up_blocks_{i}"
        if block.name == "res_x":
            for j in range(block.num_layers):
                path = f"{name}/res_blocks_{j}"
                # The embedding of the noise level is shared by the blocks, and so are the channels
                # that it modulates.
                inner = name if cfg.timestep_conditioning else path
                layers[f"{path}/conv1"] = _Layer(stream, f"{inner}/inner")
                layers[f"{path}/conv2"] = _Layer(f"{inner}/inner", stream)
            continue
        before, stream = stream, name
        if block.name == "res_x_y":
            layers[f"{name}/conv1"] = _Layer(before, f"{name}/inner")
            layers[f"{name}/conv2"] = _Layer(f"{name}/inner", stream)
            layers[f"{name}/conv_shortcut"] = _Layer(before, stream)
        else:
            residual = block.residual and block.name == "compress_all"
            cell = math.prod(STRIDES[block.name])
            layers[f"{name}/conv"] = _Layer(before, stream, cell, residual, tap)
    return {**layers, "conv_out": _Layer(stream, None)}


def _kept_channels(
    layers: Mapping[str, _Layer],
    activations: Mapping[str, Float[np.ndarray, "n c"]],
    wide: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    choose: Choose,
) -> dict[str | None, Int[np.ndarray, " k"]]:
    """The channels to keep of every stream; of the latents and the pixels, all."""
    kept: dict[str | None, np.ndarray] = {}
    for path, layer in layers.items():
        if layer.source in kept:
            continue
        count = shapes[f"{path}/kernel"].shape[-2]
        readers = [activations[p] for p, x in layers.items() if x.source == layer.source]
        if count == readers[0].shape[1]:
            kept[layer.source] = np.arange(count)
        else:
            # Every reader counts as much as the others.
            scaled = [x / max(np.sqrt(np.mean(x * x)), 1e-12) for x in readers]
            kept[layer.source] = choose(np.concatenate(scaled), count)
    kept["pixels"] = np.arange(wide["conv_out/kernel"].shape[-1])
    return kept


def _outputs(layer: _Layer, kept: Mapping[str | None, np.ndarray]) -> Int[np.ndarray, " d"]:
    """Which output channels of the wide convolution the narrow one has, in its order."""
    target = kept[layer.target or "pixels"]
    return (target[:, None] * layer.cell + np.arange(layer.cell)).reshape(-1)


def _folded(
    layer: _Layer,
    kernel: Float[np.ndarray, "t p q c d"],
    mixing: Float[np.ndarray, "k c"],
    kept: Mapping[str | None, np.ndarray],
) -> Float[np.ndarray, "t p q k e"]:
    """The narrow kernel: `mixing`, which maps the narrow inputs to the wide ones, then the wide
    kernel, and of its outputs those that stay."""
    result = np.einsum("tpqcd,kc->tpqkd", kernel[..., _outputs(layer, kept)], mixing)
    if layer.residual:
        # Outputs get the input added, whose channel groups are repeated over the outputs; of fewer
        # channels, other ones meet. The kernel adds what is missing, and takes away what is not.
        narrow, wide = (n // layer.cell for n in mixing.shape)
        centre = result[layer.tap, 1, 1].reshape(len(mixing), -1, layer.cell)
        for i, channel in enumerate(kept[layer.target]):
            cells = np.arange(layer.cell)
            centre[:, i] += mixing[:, channel % wide * layer.cell + cells]
            centre[i % narrow * layer.cell + cells, i, cells] -= 1
    return result


def _sliced(
    path: str,
    value: np.ndarray,
    kept: Mapping[str | None, np.ndarray],
    layers: Mapping[str, _Layer],
) -> np.ndarray:
    """The part of a wide parameter that belongs to the channels that stay."""
    *parents, name = path.split("/")
    parent = "/".join(parents)
    if name == "timestep_scale_multiplier":
        return value
    if name == "kernel" or (name == "bias" and parent in layers):
        layer = layers[parent]
        value = value[..., _outputs(layer, kept)]
        return value if name == "bias" else value[..., kept[layer.source], :]
    if name == "last_scale_shift_table" or parent == "conv_norm_out":
        return value[..., kept[layers["conv_out"].source]]
    # A table, a norm or the gain of a noise map in a residual block.
    block = parent if f"{parent}/conv1" in layers else "/".join(parents[:-1])
    outer, inner = layers[f"{block}/conv1"].source, layers[f"{block}/conv2"].source
    if name == "scale_shift_table":
        return np.concatenate([value[:2, kept[outer]], value[2:, kept[inner]]])
    if name == "per_channel_scale2":
        return value[kept[layers[f"{block}/conv2"].target]]
    return value[kept[inner if name == "per_channel_scale1" or parents[-1] == "norm2" else outer]]


def _embedders(
    layers: Mapping[str, _Layer],
    kept: Mapping[str | None, np.ndarray],
    wide: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    times: Float[np.ndarray, " s"],
) -> dict[str, np.ndarray]:
    """The parameters of the narrow embedders of noise levels between those of `times`, by path.

    Their inner channels are pruned like a stream; their outputs are rows of shifts and scales.
    """
    narrow: dict[str, np.ndarray] = {}
    for path in shapes:
        if not path.endswith("linear_1/kernel"):
            continue
        embedder = path.removesuffix("/linear_1/kernel")
        block = embedder.rpartition("/")[0]
        if block:
            outer, inner = (layers[f"{block}/res_blocks_0/conv{i}"].source for i in (1, 2))
            rows = (outer, outer, inner, inner)
        else:
            rows = (layers["conv_out"].source,) * 2
        first, last = (
            {name: wide[f"{embedder}/{linear}/{name}"] for name in ("kernel", "bias")}
            for linear in ("linear_1", "linear_2")
        )
        scaled = times * float(wide["timestep_scale_multiplier"])
        hidden = np.asarray(sinusoidal_embedding(jnp.asarray(scaled)), np.float64)
        hidden = hidden @ first["kernel"] + first["bias"]
        hidden = hidden / (1 + np.exp(-hidden))
        count = shapes[path].shape[-1]
        same = count == hidden.shape[1]
        channels = np.arange(count) if same else leading_channels(hidden, count)
        mixing = _least_squares(hidden[:, channels], hidden)
        width = last["kernel"].shape[-1] // len(rows)
        outputs = np.concatenate([i * width + kept[row] for i, row in enumerate(rows)])
        narrow |= {
            path: first["kernel"][:, channels],
            f"{embedder}/linear_1/bias": first["bias"][channels],
            f"{embedder}/linear_2/kernel": mixing @ last["kernel"][:, outputs],
            f"{embedder}/linear_2/bias": last["bias"][outputs],
        }
    return {name: value.astype(np.float32) for name, value in narrow.items()}


def _projections(
    large: VAEConfig, params: Any, small: VAEConfig, narrow: Any, inputs: DecoderInputs
) -> dict[str, np.ndarray]:
    def features(cfg: VAEConfig, params: Any) -> dict[str, np.ndarray]:
        def run(params: Any, inputs: DecoderInputs) -> dict[str, Any]:
            vae = VideoVAE(cfg, ExecutionConfig())
            return _sampled(decode_with_features(vae, params, *_arguments(inputs)).features)

        program = jax.jit(run, compiler_options=convolution.compiler_options())
        return {k: np.asarray(v, np.float64) for k, v in program(params, inputs).items()}

    target, source = features(large, params), features(small, narrow)
    return {name: _least_squares(source[name], x).astype(np.float32) for name, x in target.items()}


def _least_squares(
    source: Float[np.ndarray, "n k"], target: Float[np.ndarray, "n c"]
) -> Float[np.ndarray, "k c"]:
    return np.linalg.lstsq(source, target, rcond=_RELATIVE_ZERO)[0]


def _arguments(inputs: DecoderInputs) -> tuple[Any, Any, Any]:
    return inputs.latents, inputs.times, inputs.maps()


def _sampled(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _sample(x) for name, x in tree.items()}


def _sample(x: Float[Any, "b t h w c"]) -> Float[Any, "n c"]:
    """The values at `_ROWS` positions, the same for arrays of the same size."""
    rows = x.reshape(-1, x.shape[-1])
    count = min(len(rows), _ROWS)
    positions = np.random.default_rng(len(rows)).choice(len(rows), count, replace=False)
    return rows[np.sort(positions)]
