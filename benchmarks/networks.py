"""The networks as they are shipped, with random weights: forwards, loops, decoding, start-up."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Report, device_memory
from jax import lax
from sizes import FORCE_NHWC, NO_TRITON_GEMM, Scale, random

from ltx_jax import sharding
from ltx_jax.config import AttentionForm
from ltx_jax.models.t5 import T5Encoder
from ltx_jax.models.transformer import Transformer
from ltx_jax.models.vae import VideoVAE
from ltx_jax.training.flops import count_flop


@dataclasses.dataclass(frozen=True)
class Network:
    """The transformer with random weights, and inputs for it."""

    model: Transformer
    params: Any
    inputs: tuple[Any, ...]  # latents, timestep, caption, caption mask, rotary tables

    def forward(self, *arguments: Any) -> jax.Array:
        """`model.apply` of (params, *inputs)."""
        params, *inputs = arguments
        return self.model.apply({"params": params}, *inputs)

    def by(self, form: AttentionForm) -> "Network":
        """The same network with another attention."""
        model = Transformer(dataclasses.replace(self.model.cfg, attention=form))
        return dataclasses.replace(self, model=model)


def network(
    scale: Scale, batch: int = 1, layers: int | None = None, form: AttentionForm = "auto"
) -> Network:
    """A transformer of `layers` layers at the scale's token count."""
    layers = layers or scale.transformer.num_layers
    cfg = dataclasses.replace(scale.transformer, num_layers=layers, attention=form)
    model, n = Transformer(cfg), int(np.prod(scale.grid))
    angles = jax.random.uniform(jax.random.key(9), (1, n, cfg.width // 2), maxval=6.28)
    mask = jnp.tile(jnp.arange(scale.caption)[None] < scale.caption_used, (batch, 1))
    inputs = (
        random(batch, n, cfg.in_channels, seed=1, dtype=jnp.float32),
        jnp.full((batch, 1), 0.5),
        random(batch, scale.caption, cfg.caption_channels, seed=2),
        mask.astype(jnp.int32),
        (jnp.cos(angles), jnp.sin(angles)),
    )
    init = jax.jit(lambda key, *inputs: sharding.unbox(model.init(key, *inputs))["params"])
    return Network(model, init(jax.random.key(0), *inputs), inputs)


ATTENTIONS: tuple[AttentionForm, ...] = ("plain", "cudnn")


def euler(net: Network, steps: int, guided: bool) -> Callable[..., jax.Array]:
    """A program for all steps: (params, latents, caption, mask, rope) to latents."""

    def run(params: Any, latents: Any, caption: Any, mask: Any, rope: Any) -> jax.Array:
        times = jnp.linspace(1.0, 0.0, steps + 1)

        def step(x: jax.Array, pair: tuple[Any, Any]) -> tuple[jax.Array, None]:
            t, following = pair
            rows = jnp.concatenate([x, x]) if guided else x
            time_of_rows = jnp.full((rows.shape[0], 1), t)
            v = net.forward(params, rows, time_of_rows, caption, mask, rope)
            if guided:
                negative, positive = jnp.split(v, 2)
                v = negative + 3.0 * (positive - negative)
            return x + (following - t) * v, None

        return lax.scan(step, latents, (times[:-1], times[1:]))[0]

    return run


def model(report: Report, scale: Scale) -> None:
    """One block, the whole transformer at batches 1 and 2, and the loop over the steps."""
    for layers, batch in ((None, 1), (None, 2), (1, 1)):
        net = network(scale, batch, layers)
        arguments = (net.params, *net.inputs)
        flop = count_flop(net.by("plain").forward, *arguments)
        name = f"{layers or scale.transformer.num_layers} layers, batch {batch}"
        report.compare(
            "model",
            [
                Case(f"{name}, {form}{kind}", net.by(form).forward, arguments, flop, options=how)
                for form in ATTENTIONS
                for kind, how in (("", {}), (", no Triton", NO_TRITON_GEMM))
            ],
        )
        if layers is None:
            report.compare(
                "model",
                [_loop_case(scale, net, flop, guided=batch == 2)],
            )
    report.facts["memory after model"] = device_memory()


def _loop_case(scale: Scale, net: Network, flop: float, guided: bool) -> Case:
    latents, _, caption, mask, rope = net.inputs
    name = f"{scale.steps} steps{' with guidance' if guided else ''}"
    function = euler(net, scale.steps, guided)
    arguments = (net.params, latents[:1], caption, mask, rope)
    return Case(name, function, arguments, flop * scale.steps, options=NO_TRITON_GEMM, repeats=3)


def decoder(scale: Scale) -> tuple[VideoVAE, Any, tuple[Any, ...]]:
    """The VAE with random weights, and (latents, timestep) for its decoder."""
    cfg, vae = scale.vae, VideoVAE(scale.vae)
    side = cfg.spatial_factor
    video = jnp.zeros((1, cfg.temporal_factor + 1, side, side, 3))
    init = jax.jit(lambda key, video: sharding.unbox(vae.init(key, video))["params"])
    latents = random(1, *scale.grid, cfg.latent_channels, seed=5)
    return vae, init(jax.random.key(1), video), (latents, jnp.full((1,), 0.05))


def vae(report: Report, scale: Scale) -> None:
    """Decoding and encoding the whole video at once."""
    module, params, inputs = decoder(scale)
    exact_module = VideoVAE(dataclasses.replace(scale.vae, dtype="float32"))

    def decode(params, latents, t):
        return module.apply({"params": params}, latents, t, method="decode")

    def exact(params, latents, t):
        with jax.default_matmul_precision("highest"):
            return exact_module.apply({"params": params}, latents, t, method="decode")

    def encode(params, video):
        return module.apply({"params": params}, video, method="encode").mean

    arguments = (params, *inputs)
    flop = count_flop(decode, *arguments)
    cases = [
        Case(
            f"decode, {form}",
            lambda *a: decode(*a),
            arguments,
            flop,
            options=options,
            reference=exact,
        )
        for form, options in (("NHWC forced", FORCE_NHWC), ("as XLA likes", {}))
    ]
    report.compare("vae", cases)
    video = jax.jit(decode)(*arguments).astype(jnp.bfloat16)
    flop = count_flop(encode, params, video)
    report.compare(
        "vae", [Case("encode, NHWC forced", encode, (params, video), flop, options=FORCE_NHWC)]
    )
    report.facts["memory after vae"] = device_memory()


def pipeline(report: Report, scale: Scale) -> None:
    """Noise to bytes on the host: the loop, the decoder and the copy; no text encoder."""
    module, vae_params, (_, t) = decoder(scale)

    def to_bytes(params: Any, latents: Any, t: Any) -> Any:
        grid = latents.reshape(latents.shape[0], *scale.grid, latents.shape[-1])
        video = module.apply({"params": params}, grid, t, method="decode")
        return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    for guided in (False, True):
        if report.out_of_time():
            return
        case = _loop_case(scale, network(scale, 2 if guided else 1), 0.0, guided)
        try:
            sample = jax.jit(case.function).lower(*case.arguments)
            sample = sample.compile(compiler_options=case.options)
            latents = sample(*case.arguments)
            decode = jax.jit(to_bytes).lower(vae_params, latents, t)
            decode = decode.compile(compiler_options=FORCE_NHWC)
            np.asarray(decode(vae_params, latents, t))
            parts = []
            for _ in range(3):
                start = time.perf_counter()
                latents = jax.block_until_ready(sample(*case.arguments))
                denoised = time.perf_counter()
                video = jax.block_until_ready(decode(vae_params, latents, t))
                decoded = time.perf_counter()
                np.asarray(video)
                end = time.perf_counter()
                parts.append((end - start, denoised - start, decoded - denoised, end - decoded))
            whole, *split = np.median(parts, axis=0).tolist()
            note = "denoise {:.3f} s, decode {:.3f} s, to the host {:.3f} s".format(*split)
            times = [part[0] for part in parts]
            figures = {"median_s": whole, "fastest_s": min(times), "slowest_s": max(times)}
            report.add("pipeline", case.name, note=note, samples=3, **figures)
        except Exception as error:  # any failure is a result here
            report.fail("pipeline", case.name, error)
    report.facts["memory after pipeline"] = device_memory()


def text(report: Report, scale: Scale) -> None:
    """The text encoder on one prompt, and on a prompt and its negative."""
    model = T5Encoder(scale.text)
    ids = jnp.ones((1, scale.caption), jnp.int32)
    init = jax.jit(lambda key: sharding.unbox(model.init(key, ids, ids))["params"])
    params = init(jax.random.key(2))
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
                Case(f"batch {batch}{kind}", encode, arguments, flop, moved, options=options)
                for kind, options in (("", {}), (", no Triton", NO_TRITON_GEMM))
            ],
        )


def start(report: Report, scale: Scale) -> None:
    """How long the whole transformer takes to be ready: compiled, from the cache, deserialised."""
    from jax.experimental import serialize_executable
    from jax.experimental.compilation_cache import compilation_cache

    net = network(scale)
    arguments = (net.params, *net.inputs)

    def ready(name: str, make: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        made = make()
        report.add("start", name, note=f"{time.perf_counter() - begin:.2f} s")
        return made

    def fresh() -> Any:
        return jax.jit(lambda *a: net.forward(*a)).lower(*arguments).compile()

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
                lambda: serialize_executable.deserialize_and_load(*blob),
            )
            ready("first call", lambda: jax.block_until_ready(loaded(*arguments)))
        finally:
            jax.config.update("jax_enable_compilation_cache", False)
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()
