"""The networks with random weights: predictions, the denoising loop, the VAE, text, start-up."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Case, Report, device_memory
from benchmarks.sizes import LINEARS, MODELS, NO_TRITON_GEMM, Scale, initialise, pick, random
from ltx_jax.config import AttentionForm, Linears, TransformerConfig
from ltx_jax.diffusion.calibration import input_maxima
from ltx_jax.models import convolution
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.transformer import Context, Transformer, compiler_options
from ltx_jax.models.transformer_fast import FastTransformer
from ltx_jax.models.transformer_fast_parameters import derive, quantize
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime.compiled import Programs
from ltx_jax.training.flops import count_flop


@dataclasses.dataclass(frozen=True)
class Network:
    """The transformer with random weights, and inputs for it."""

    model: Transformer
    params: Any
    inputs: tuple[Any, ...]  # latents, timestep, context

    def forward(self, *arguments: Any) -> jax.Array:
        """`model.apply` of (params, *inputs)."""
        params, *inputs = arguments
        return self.model.apply({"params": params}, *inputs)  # pyright: ignore[reportReturnType]

    def by(self, form: AttentionForm) -> "Network":
        """The same network with another attention."""
        execution = dataclasses.replace(self.model.execution, attention=form)
        model = Transformer(self.model.cfg, execution)
        return dataclasses.replace(self, model=model)

    @property
    def flop(self) -> float:
        """FLOP of one forward pass, counted with plain attention: fused kernels hide matmuls."""
        return count_flop(self.by("plain").forward, self.params, *self.inputs)

    @property
    def fast_form(self) -> FastTransformer:
        """The form that samples fastest on a GPU."""
        return FastTransformer(self.model.cfg, self.model.execution)

    def fast(self, linears: Linears | None = None) -> tuple[Any, tuple[Any, ...]]:
        """Parameters and inputs of the fast form; float8 linears are calibrated on the inputs."""
        latents, timestep, context = self.inputs
        params = derive(self.params, self.model.cfg, self.model.execution)
        context = jax.jit(self.fast_form.context)(params, context)
        if linears is not None:
            maxima = None
            if linears == "float8":
                times, call = np.array([1.0, 0.5, 0.1], np.float32), Programs(compiler_options())
                maxima = input_maxima(self.fast_form, params, latents, context, times, call)
            params = quantize(params, linears, maxima)
        return params, (latents, timestep, context)


def network(
    scale: Scale,
    batch: int = 1,
    cfg: TransformerConfig | None = None,
    grid: tuple[int, int, int] | None = None,
) -> Network:
    """A transformer, and inputs of one size."""
    cfg, grid = cfg or scale.transformer, grid or scale.grid
    model, n = Transformer(cfg, scale.execution), int(np.prod(grid))
    angles = jax.random.uniform(jax.random.key(9), (1, n, cfg.width // 2), maxval=6.28)
    mask = jnp.tile(jnp.arange(scale.caption)[None] < scale.caption_used, (batch, 1))
    context = Context(
        random(batch, scale.caption, cfg.caption_channels, seed=2, dtype=scale.execution.dtype),
        mask.astype(jnp.int32),
        (jnp.cos(angles), jnp.sin(angles)),
    )
    latents = random(batch, n, cfg.in_channels, seed=1, dtype=jnp.float32)
    inputs = latents, jnp.full((batch, 1), 0.5), context
    return Network(model, initialise(model.init, *inputs), inputs)


def sizes(scale: Scale) -> dict[str, TransformerConfig]:
    """The configurations of the two released transformers, or smaller ones in their place."""
    layers, channels = scale.large
    large = dataclasses.replace(scale.transformer, num_layers=layers, attention_head_dim=channels)
    return {"2B": scale.transformer, "13B": large}


def transformer(report: Report, scale: Scale) -> None:
    """One prediction: both models, several numbers of tokens, the plain form and the fast forms."""
    grids = (scale.grid, *scale.more_grids)
    for models, forms in pick(scale, (MODELS, MODELS), (tuple(LINEARS), tuple(LINEARS))):
        for name, grid in itertools.product(models, grids):
            net = network(scale, cfg=sizes(scale)[name], grid=grid)
            _forwards(report, f"{name}, {int(np.prod(grid))} tokens", net, forms)
    report.facts["memory after transformer"] = device_memory()


def _forwards(report: Report, title: str, net: Network, forms: Sequence[str]) -> None:
    flop, options = net.flop, compiler_options() or {}
    stored = (net.params, *net.inputs)
    report.compare(
        "transformer", [Case(f"{title}, as stored", net.forward, stored, flop, options=options)]
    )
    exact = None
    for form in forms:
        params, inputs = net.fast(LINEARS[form])
        reference = None if exact is None else lambda *_, exact=exact: exact
        arguments = (params, *inputs)
        case = Case(
            f"{title}, fast form{named(LINEARS[form])}",
            net.fast_form,
            arguments,
            flop,
            options=options,
            reference=reference,
        )
        report.compare("transformer", [case])
        if form == "none":
            exact = jax.jit(net.fast_form)(*arguments)


def named(linears: Linears | None) -> str:
    """The part of a case's name that states its linears."""
    return f", {linears} linears" if linears else ""


def sampler(report: Report, scale: Scale) -> None:
    """The denoising loop as one program: without guidance, and with it as a batch of two."""
    for models, forms in pick(scale, (MODELS, MODELS), (tuple(LINEARS), ("none", "float8"))):
        for name, form in itertools.product(models, forms):
            cfg, cases = sizes(scale)[name], []
            for branches in (1, 2):
                net = network(scale, branches, cfg)
                params, inputs = net.fast(LINEARS[form])
                latents, _, context = inputs
                cases.append(
                    Case(
                        f"{name}, {scale.steps} steps{named(LINEARS[form])}",
                        _loop(net.fast_form, scale.steps, branches),
                        (params, latents[:1], context),
                        net.flop * scale.steps,
                        branches,
                        options=compiler_options() or {},
                        repeats=3,
                    )
                )
            report.compare("sampler", cases)
    report.facts["memory after sampler"] = device_memory()


def _loop(network: FastTransformer, steps: int, branches: int) -> Callable[..., jax.Array]:
    def run(params: Any, latents: Any, context: Any) -> jax.Array:
        times = jnp.linspace(1.0, 0.0, steps + 1)

        def step(i: Any, x: jax.Array) -> jax.Array:
            rows, t = jnp.tile(x, (branches, 1, 1)), jnp.full((branches, 1), times[i])
            v = network(params, rows, t, context)
            if branches == 2:
                v = v[:1] + 3.0 * (v[1:] - v[:1])
            return x + (times[i + 1] - times[i]) * v

        return jax.lax.fori_loop(0, steps, step, latents)

    return run


def decoder(scale: Scale) -> tuple[VideoVAE, Any, tuple[Any, ...]]:
    """The VAE with random weights, and (latents, timestep) for its decoder."""
    cfg, vae = scale.vae, VideoVAE(scale.vae, scale.execution)
    side = cfg.spatial_factor
    video = jnp.zeros((1, cfg.temporal_factor + 1, side, side, 3))
    latents = random(1, *scale.grid, cfg.latent_channels, seed=5, dtype=scale.execution.dtype)
    return vae, initialise(vae.init, video), (latents, jnp.full((1,), 0.05))


def vae(report: Report, scale: Scale) -> None:
    """Decoding and encoding the whole video at once."""
    module, params, inputs = decoder(scale)
    exact_module = VideoVAE(scale.vae)

    def decode(params: Any, latents: Any, t: Any) -> Any:
        return module.apply({"params": params}, latents, t, method="decode")

    def exact(params: Any, latents: Any, t: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return exact_module.apply({"params": params}, latents, t, method="decode")

    def encode(params: Any, video: Any) -> Any:
        return module.apply({"params": params}, video, method="encode").mean  # pyright: ignore[reportAttributeAccessIssue]

    arguments = (params, *inputs)
    flop, options = count_flop(decode, *arguments), convolution.compiler_options() or {}
    reference = None if scale.execution.dtype == "float32" else exact
    forms = {"decode": options, "decode, without compiler options": {}}
    report.compare(
        "vae",
        [
            Case(
                name,
                lambda *a: decode(*a),
                arguments,
                flop,
                options=how,
                reference=reference,
            )
            for name, how in forms.items()
        ],
    )
    t, h, w = scale.grid
    side, length = scale.vae.spatial_factor, scale.vae.temporal_factor
    shape, dtype = (1, (t - 1) * length + 1, h * side, w * side, 3), scale.execution.dtype
    video = random(*shape, seed=6, dtype=dtype)
    flop = count_flop(encode, params, video)
    report.compare("vae", [Case("encode", encode, (params, video), flop, options=options)])
    report.facts["memory after vae"] = device_memory()


def text(report: Report, scale: Scale) -> None:
    """The text encoder on one prompt, and on a prompt and its negative."""
    model = T5Encoder(scale.text, scale.execution)
    ids = jnp.ones((1, scale.caption), jnp.int32)
    params = initialise(model.init, ids, ids)
    for batch in (1, 2):
        ids = jax.random.randint(
            jax.random.key(3), (batch, scale.caption), 0, scale.text.vocab_size
        )
        mask = jnp.tile(jnp.arange(scale.caption)[None] < scale.caption_used, (batch, 1))

        def encode(params: Any, ids: Any, mask: Any) -> Any:
            return model.apply({"params": params}, ids, mask)

        arguments = (params, ids, mask.astype(jnp.int32))
        flop = count_flop(encode, *arguments)
        moved = float(sum(x.nbytes for x in jax.tree.leaves(params)))
        report.compare(
            "text",
            [
                Case(f"batch {batch}{kind}", encode, arguments, flop, bytes=moved, options=options)
                for kind, options in (("", {}), (", no Triton", NO_TRITON_GEMM))
            ],
        )


def startup(report: Report, scale: Scale) -> None:
    """The time until the transformer can run: compiled, from jax's cache, or deserialised."""
    from jax.experimental import serialize_executable
    from jax.experimental.compilation_cache import compilation_cache

    net = network(scale)
    params, inputs = net.fast()
    velocity, arguments = net.fast_form, (params, *inputs)

    def ready(name: str, make: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = make()
        report.add("startup", name, note=f"{time.perf_counter() - begin:.2f} s")
        return result

    def fresh() -> Any:
        lowered = jax.jit(lambda *a: velocity(*a)).lower(*arguments)
        return lowered.compile(compiler_options=compiler_options())

    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        try:
            compiled = ready("trace, compile and store", fresh)
            jax.clear_caches()
            ready("trace, and fetch from the cache", fresh)
            blob = ready("serialise", lambda: serialize_executable.serialize(compiled))
            loaded = ready(
                f"load {len(blob[0]) / 1e6:.1f} MB",
                lambda: serialize_executable.deserialize_and_load(
                    *blob, execution_devices=jax.local_devices()[:1]
                ),
            )
            ready("first call", lambda: jax.block_until_ready(loaded(*arguments)))
        finally:
            jax.config.update("jax_enable_compilation_cache", False)
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()
