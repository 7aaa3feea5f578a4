"""Peak rates of the device, and the kernels that the networks consist of."""

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.harness import Case, Report
from benchmarks.sizes import FORCE_NHWC, NO_TRITON_GEMM, Scale, random
from ltx_jax.models import convolution
from ltx_jax.models.attention import attention as plain_attention


def ceilings(report: Report, scale: Scale) -> None:
    """The peak rates that all other rates are compared with: of a copy and of a large matmul."""
    words = jnp.arange(scale.copy_bytes // 4, dtype=jnp.uint32)
    # Flips a bit, since XLA would leave out a plain copy.
    copy = Case("read and write", lambda x: x ^ 1, (words,), bytes=2.0 * words.nbytes)
    report.compare("ceilings", [copy])
    del words, copy
    n = scale.square
    x, w = random(n, n, seed=1), random(n, n, seed=2)
    flop = 2.0 * n**3
    cases = [Case(f"bf16 {n}^3", jnp.dot, (x, w), flop)]
    cases.append(Case(f"bf16 {n}^3, no Triton", jnp.dot, (x, w), flop, options=NO_TRITON_GEMM))
    f32 = tuple(a.astype(jnp.float32) for a in (x, w))
    cases.append(Case(f"f32 {n}^3, default precision", jnp.dot, f32, flop))
    report.compare("ceilings", cases)
    rows = [row for row in report.rows if row["section"] == "ceilings" and row["status"] == "ok"]
    report.facts["ceilings"] = {
        unit: max(row.get(unit, 0.0) for row in rows if row["case"].startswith(prefix))
        for unit, prefix in (("tflops", "bf16"), ("gbs", "read"))
        if any(row["case"].startswith(prefix) for row in rows)
    }
    report.save()


def gemm(report: Report, scale: Scale) -> None:
    """The transformer's matmuls: in bfloat16 by Triton and cuBLASLt, and in eight bits."""
    d = scale.width
    for rows in scale.rows:
        for inputs, outputs in ((d, 4 * d), (4 * d, d), (d, 3 * d), (d, d)):
            x, w = random(rows, inputs, seed=1), random(outputs, inputs, seed=2) * inputs**-0.5
            w, bias = w.astype(jnp.bfloat16), random(outputs, seed=3)
            finish = jax.nn.gelu if outputs == 4 * d else lambda y: y

            # Weights are (out, in), since Hopper's 8-bit matmuls need the contracted axis last.
            def product(x, w, bias, scales, finish=finish, dequantise=True):
                if dequantise:
                    x, w = (a.astype(jnp.bfloat16) * s for a, s in zip((x, w), scales, strict=True))
                contract = (((1,), (1,)), ((), ()))
                y = lax.dot_general(x, w, contract, preferred_element_type=jnp.bfloat16)
                if not dequantise:
                    y = y * (scales[0] * scales[1])
                return finish(y + bias[None])

            def exact(x, w, bias, scales, finish=finish):
                x, w = (a.astype(jnp.float32) * s for a, s in zip((x, w), scales, strict=True))
                return finish(jnp.dot(x, w.T, precision="highest") + bias[None])

            one = (jnp.bfloat16(1), jnp.bfloat16(1))
            e4m3 = (jnp.bfloat16(1), jnp.bfloat16(inputs**-0.5))
            x8 = x.astype(jnp.float8_e4m3fn)
            w8 = (w.astype(jnp.float32) * inputs**0.5).astype(jnp.float8_e4m3fn)
            wide, small = (x, w, bias, one), (x8, w8, bias, e4m3)
            raw = functools.partial(product, dequantise=False)
            kinds = [
                ("bf16", product, wide, {}),
                ("bf16, no Triton", product, wide, NO_TRITON_GEMM),
                ("fp8 raw", raw, small, {}),
                ("fp8 raw, no Triton", raw, small, NO_TRITON_GEMM),
                ("fp8 QDQ, no Triton", product, small, NO_TRITON_GEMM),
            ]
            name = f"{rows} x {inputs} -> {outputs}{' gelu' if outputs == 4 * d else ''}"
            flop = 2.0 * rows * inputs * outputs
            report.compare(
                "gemm",
                [
                    Case(f"{name}, {kind}", f, arguments, flop, options=options, reference=exact)
                    for kind, f, arguments, options in kinds
                ],
            )


def cudnn_attention(q: Any, k: Any, v: Any, *, mask: Any = None) -> jax.Array:
    """cuDNN's fused kernel; the mask must be ones and then zeros."""
    lengths = None if mask is None else mask.sum(-1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def with_gradient(form: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The gradients of the sum of an attention's output."""

    def total(q: Any, k: Any, v: Any) -> jax.Array:
        return form(q, k, v).astype(jnp.float32).sum()

    return jax.grad(total, (0, 1, 2))


def cudnn_fp8_attention(q: Any, k: Any, v: Any) -> jax.Array:
    """cuDNN's attention in eight bits with scales of 1, by a private function of jax."""
    module = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    scales = {name: jnp.ones((1, 1, 1, 1), jnp.float32) for name in module.fp8_params_keys}
    small = (x.astype(jnp.float8_e4m3fn) for x in (q, k, v))
    out = module.dot_product_attention(
        *small, fp8_params=scales, scale=q.shape[-1] ** -0.5, use_fp8=True
    )
    return (out[0] if isinstance(out, tuple) else out).astype(q.dtype)


def mosaic_attention(block_q: int, block_kv: int) -> Callable[..., jax.Array]:
    """jax's FlashAttention-3 for Hopper, changed to bfloat16 buffers.

    Its buffers are float16 for all inputs, with which bfloat16 inputs do not compile.
    """
    path = "jax.experimental.pallas.ops.gpu.attention_mgpu"
    source = inspect.getsource(importlib.import_module(path))
    module = types.ModuleType("attention_mgpu_bf16")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(source.replace("head_dim), jnp.float16", "head_dim), jnp.bfloat16"), module.__dict__)
    tuning = module.TuningConfig(block_q=block_q, block_kv=block_kv, max_concurrent_steps=2)
    return lambda q, k, v: module.attention(q, k, v, tuning)


def attention(report: Report, scale: Scale) -> None:
    """Self-attention over the video and cross-attention to the caption, by all implementations."""
    n = scale.rows[0]
    mask = (jnp.arange(scale.caption) < scale.caption_used)[None].astype(jnp.int32)
    for heads, size in scale.heads:
        q, k, v = (random(1, n, heads, size, seed=s) for s in (1, 2, 3))
        context = [random(1, scale.caption, heads, size, seed=s) for s in (4, 5)]

        def exact(q, k, v, mask=None):
            with jax.default_matmul_precision("highest"):
                return plain_attention(*(x.astype(jnp.float32) for x in (q, k, v)), mask=mask)

        xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")
        forms = {"ours, plain": plain_attention, "cuDNN": cudnn_attention, "jax.nn, xla": xla}
        name, flop = f"{heads} heads of {size}, {n} tokens", 4.0 * n * n * heads * size
        self_cases = [
            Case(f"{name}, {form}", f, (q, k, v), flop, reference=exact)
            for form, f in forms.items()
        ]
        cases = [
            *self_cases,
            Case(f"{name}, cuDNN fp8", cudnn_fp8_attention, (q, k, v), flop, reference=exact),
        ]
        for blocks in scale.mosaic_blocks:

            def mosaic(q, k, v, blocks=blocks):
                return mosaic_attention(*blocks)(q, k, v)

            cases.append(Case(f"{name}, Mosaic {blocks}", mosaic, (q, k, v), flop, reference=exact))
        backward = Case(
            f"{name}, cuDNN, with gradient", with_gradient(cudnn_attention), (q, k, v), 3.5 * flop
        )
        report.compare("attention", [*cases, backward])
        cross = (q, *context, mask)
        name = f"{heads} heads of {size}, {n} tokens to {scale.caption_used} of {scale.caption}"
        report.compare(
            "attention",
            [
                Case(
                    f"{name}, {form}",
                    lambda q, k, v, mask, f=f: f(q, k, v, mask=mask),
                    cross,
                    4.0 * n * scale.caption * heads * size,
                    reference=exact,
                )
                for form, f in (("ours, plain", plain_attention), ("cuDNN", cudnn_attention))
            ],
        )


def conv(report: Report, scale: Scale) -> None:
    """The decoder's 3x3x3 convolutions, checked against float32, since cuDNN has given wrong
    results for them."""
    for channels, t, rows, columns in scale.stages:
        x, w = _conv_inputs(channels, t, rows, columns)
        turned = jnp.asarray(w.transpose(4, 0, 1, 2, 3))
        name = f"{channels} channels, {t}x{rows}x{columns}"
        flop = 2.0 * 27 * channels**2 * t * rows * columns
        forms = (
            ("NHWC forced", _conv3d("DHWIO"), w, FORCE_NHWC, "DHWIO"),
            ("as XLA likes", _conv3d("DHWIO"), w, {}, "DHWIO"),
            ("NHWC forced, ODHWI kernel", _conv3d("ODHWI"), turned, FORCE_NHWC, "ODHWI"),
            ("three 2D", _sum_of_2d, w, {}, "DHWIO"),
        )
        report.compare(
            "conv",
            [
                Case(
                    f"{name}, {form}",
                    f,
                    (x, kernel),
                    flop,
                    options=options,
                    reference=_exact(_conv3d(layout)),
                )
                for form, f, kernel, options, layout in forms
            ],
        )


def conv_gradients(report: Report, scale: Scale) -> None:
    """Both gradients of such convolutions: XLA's own, those of three 2-D convolutions, and as
    convolutions.

    Each is compiled by itself, because autotuning a whole step of a small VAE takes XLA minutes.
    """
    for channels, t, rows, columns in (*scale.narrow_stages, *scale.stages):
        x, w = _conv_inputs(channels, t, rows, columns)
        grad = random(*x.shape, seed=3)
        name = f"{channels} channels, {t}x{rows}x{columns}"
        flop = 4.0 * 27 * channels**2 * t * rows * columns
        native = _gradients(_conv3d("DHWIO"))
        for form, f, options in (
            ("as convolutions", _gradients_by_convolution, FORCE_NHWC),
            ("three 2D", _gradients(_sum_of_2d), {}),
            ("NHWC forced", native, FORCE_NHWC),
            ("as XLA likes", native, {}),
        ):
            arguments, reference = (x, w, grad), _exact(_gradients(_sum_of_2d))
            case = Case(f"{name}, {form}", f, arguments, flop, options=options, reference=reference)
            report.compare("conv_gradients", [case])


def _conv_inputs(channels: int, *size: int) -> tuple[jax.Array, jax.Array]:
    w = random(3, 3, 3, channels, channels, seed=2) * (27 * channels) ** -0.5
    return random(1, *size, channels, seed=1), w.astype(jnp.bfloat16)


def _conv3d(layout: str) -> Callable[..., jax.Array]:
    numbers = ("NDHWC", layout, "NDHWC")
    return lambda x, w: lax.conv_general_dilated(x, w, (1, 1, 1), "SAME", dimension_numbers=numbers)


def _sum_of_2d(x: jax.Array, w: jax.Array) -> jax.Array:
    b, t, rows, columns, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    frames = [padded[:, i : i + t].reshape(b * t, rows, columns, c) for i in range(3)]
    numbers = ("NHWC", "HWIO", "NHWC")
    parts = [
        lax.conv_general_dilated(f, w[i], (1, 1), "SAME", dimension_numbers=numbers)
        for i, f in enumerate(frames)
    ]
    return sum(parts[1:], parts[0]).reshape(b, t, rows, columns, -1)


def _gradients(convolve: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    return lambda x, w, grad: jax.vjp(convolve, x, w)[1](grad)


def _gradients_by_convolution(x: jax.Array, w: jax.Array, grad: jax.Array) -> tuple[Any, ...]:
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    of_x, of_w = convolution.gradients_by_convolution(x, w, grad, pad=(1, 1))
    return of_x[:, 1:-1], of_w


def _exact(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same in float32."""

    def run(*arguments: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return f(*(x.astype(jnp.float32) for x in arguments))

    return run
