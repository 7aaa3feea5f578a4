"""Programs of the released 2B model, as the pipeline runs them, compiled for devices elsewhere."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax.checkpoints import official_config, releases
from ltx_jax.config import (
    ExecutionConfig,
    Linears,
    MeshConfig,
    SamplingConfig,
    TransformerConfig,
    VAEConfig,
)
from ltx_jax.diffusion import guidance, sampler
from ltx_jax.diffusion.denoiser import Denoiser, Fast, Plain, TeaCache
from ltx_jax.diffusion.noise import seeded
from ltx_jax.inference import encode_decode
from ltx_jax.models import convolution
from ltx_jax.models.transformer import Context, TimeGroups, compiler_options
from ltx_jax.models.transformer_fast_parameters import LINEARS, quantize
from ltx_jax.models.vae import LatentStatistics, VideoVAE
from ltx_jax.planning import accelerators, hlo, plan
from ltx_jax.runtime import sharding

GRID = (16, 16, 24)  # of 121 frames of 512 x 768
TOKENS, CAPTION, CHANNELS = 16 * 16 * 24, 256, 4096
WIDTH, HIDDEN = 2048, 8192
EXECUTION = ExecutionConfig(dtype="bfloat16", param_dtype="bfloat16")
_RELEASED = official_config.parse(json.dumps(releases.RELEASED["2b-0.9.5"].config), "2b-0.9.5")


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, read."""

    compiled: Any

    @functools.cached_property
    def text(self) -> str:
        return self.compiled.as_text()

    @functools.cached_property
    def executed(self) -> list[hlo.Executed]:
        return hlo.executed(self.text)

    @functools.cached_property
    def traffic(self) -> hlo.Traffic:
        return hlo.traffic(self.text)

    @property
    def temporary(self) -> int:
        return self.compiled.memory_analysis().temp_size_in_bytes

    def calls(self, library: str) -> list[hlo.Executed]:
        """Calls of a library's function, as often as they run."""
        target = f'custom_call_target="{library}"'
        return [x for x in self.executed for _ in range(x.times) if target in x.text]


def mesh_of(name: str, **axes: int) -> Any:
    """A mesh of a target's devices; skips the test where its compiler is not installed."""
    plan.prepare(name)
    try:
        devices = accelerators.find(name).devices
    except ValueError as error:
        pytest.skip(str(error))
    return sharding.make_mesh(MeshConfig(**{"data": 1} | axes), devices)


def laid_out(tree: Any, mesh: Any, *axes: Any) -> Any:
    """Shapes with a sharding: whole on every device, or split along `axes`."""

    def lay(x: Any) -> Any:
        names = sharding.divisible_axes(
            x.shape, (*axes, *(None,) * (len(x.shape) - len(axes))), mesh
        )
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, sharding.spec(names) if axes else P())
        )

    return jax.tree.map(lay, tree)


def transformer(layers: int | None = None) -> TransformerConfig:
    cfg = _RELEASED.transformer
    return cfg if layers is None else dataclasses.replace(cfg, num_layers=layers)


def vae() -> VAEConfig:
    return _RELEASED.vae


def stored(cfg: TransformerConfig) -> Any:
    """Shapes of the transformer's parameters, with the names of their axes."""
    return jax.eval_shape(Plain(cfg, EXECUTION).init, jax.random.key(0))


def derived(cfg: TransformerConfig, linears: Linears | None = None) -> Any:
    """Shapes of the parameters of the fast form."""

    def derive(params: Any) -> Any:
        params = Fast(cfg, EXECUTION).prepare(params)
        if linears is None:
            return params
        maxima = [dict.fromkeys(LINEARS, 1.0)] * cfg.num_layers
        return quantize(params, linears, maxima if linears == "float8" else None)

    return jax.eval_shape(derive, sharding.unbox(stored(cfg)))


def inputs(denoiser: Plain | Fast, params: Any, batch: int) -> Any:
    """Shapes of what a loop without guidance reads, and its branches."""
    shape, cfg = jax.ShapeDtypeStruct, denoiser.cfg
    times = np.linspace(1, 0.05, 20, dtype=np.float32)
    options = SamplingConfig(guidance_scale=1.0, stg_scale=0.0)
    planned = guidance.guidance_schedule(options, times, cfg.num_layers)
    padded, scales = jax.eval_shape(lambda: sampler.per_step(times, planned))
    context = Context(
        shape((batch, CAPTION, CHANNELS), jnp.bfloat16),
        shape((batch, CAPTION), jnp.int32),
        (shape((1, TOKENS, cfg.width // 2), jnp.float32),) * 2,
    )
    made = sampler.Inputs(
        start=shape((batch, TOKENS, cfg.in_channels), jnp.float32),
        strength=None,
        context=jax.eval_shape(denoiser.prepare_context, params, context),
        negative=None,
        times=padded,
        scales=scales,
        image_noise=None,
        noise=jax.eval_shape(lambda: seeded(0, batch, 0)),
    )
    return made, planned.branches[0]


def step(denoiser: Denoiser, mesh: Any, params: Any, made: Any, branches: Any) -> Program:
    """The sampler's step, its tokens laid out as it leaves them."""
    tokens = laid_out(made.start, mesh, "batch", "token")
    index = laid_out(jax.ShapeDtypeStruct((), jnp.int32), mesh)
    state = jax.eval_shape(lambda: denoiser.init_state(made.start.shape))
    state = sampler.State(laid_out(state, mesh), None)
    call = (laid_out(denoiser, mesh), params, tokens, made, index, state)
    lowered = sampler.step.lower(*call, branches=branches, mode=sampler.Mode())
    return Program(lowered.compile(compiler_options=compiler_options()))


@functools.cache
def fast_step(
    layers: int, linears: Linears | None = None, reuse: bool = False, condition: bool = False
) -> Program:
    """The step of the fast form, for one H200; `reuse`: TeaCache; `condition`: an image."""
    mesh, cfg = mesh_of("h200"), transformer(layers)
    params, denoiser = derived(cfg, linears), Fast(cfg, EXECUTION)
    made, branches = inputs(denoiser, params, 1)
    if reuse:
        limit = jax.ShapeDtypeStruct((), jnp.float32)
        denoiser = TeaCache(cfg, EXECUTION, limit, limit)
    if condition:
        group, member = (jax.ShapeDtypeStruct((1, x), jnp.int32) for x in (TOKENS, 2))
        context = made.context.replace(time_groups=TimeGroups(group, member))
        strength = jax.ShapeDtypeStruct((1, TOKENS), jnp.float32)
        made = dataclasses.replace(made, strength=strength, context=context)
    params, made = laid_out((params, made), mesh)
    with sharding.use_mesh(mesh):
        return step(denoiser, mesh, params, made, branches)


@functools.cache
def sharded_step(name: str, layers: int, batch: int = 1, **axes: int) -> Program:
    """The step of the plain form, over a mesh."""
    mesh, cfg = mesh_of(name, **axes), transformer(layers)
    shapes, denoiser = stored(cfg), Plain(cfg, EXECUTION)
    params = jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=layout),
        sharding.unbox(shapes),
        sharding.shardings(shapes, mesh),
    )
    made, branches = inputs(denoiser, params, batch)
    with sharding.use_mesh(mesh):
        return step(denoiser, mesh, params, laid_out(made, mesh), branches)


def decoder_params(cfg: VAEConfig) -> Any:
    side = cfg.spatial_factor
    video = jnp.zeros((1, cfg.temporal_factor + 1, side, side, 3))
    init = functools.partial(VideoVAE(cfg, EXECUTION).init, jax.random.key(0))
    return sharding.unbox(jax.eval_shape(init, video)["params"])


@functools.cache
def decoder() -> Program:
    """Latents to bytes, for one H200."""
    mesh, cfg = mesh_of("h200"), vae()
    channels = jax.ShapeDtypeStruct((cfg.latent_channels,), jnp.float32)
    latents = jax.ShapeDtypeStruct((1, *GRID, cfg.latent_channels), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    noise = jax.eval_shape(lambda: seeded(0, 1, 0))
    arguments = (decoder_params(cfg), LatentStatistics(channels, channels), latents, noise)
    with sharding.use_mesh(mesh):
        arguments = laid_out((*arguments, scalar, scalar, scalar), mesh)
        lowered = encode_decode.decode.lower(*arguments, cfg=cfg, execution=EXECUTION, uint8=True)
        return Program(lowered.compile(compiler_options=convolution.compiler_options()))
