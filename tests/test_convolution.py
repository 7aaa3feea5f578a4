import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax.models import convolution

# (batch, frames, rows, columns, channels in), channels out: the shapes at which a native bfloat16
# gradient was seen wrong, one frame, odd sizes, one row, one channel of one frame, few outputs.
SHAPES = [
    ((4, 27, 6, 24, 32), 16),
    ((4, 9, 24, 24, 32), 16),
    ((1, 3, 5, 7, 3), 4),
    ((2, 6, 1, 3, 5), 8),
    ((1, 3, 16, 16, 16), 1),
    ((1, 3, 3, 3, 4), 128),
]


def draw(shape, dtype="float32"):
    """Host arrays: every eager operation would be a compilation."""
    rng = np.random.default_rng(len(shape))
    return rng.standard_normal(shape, np.float32).astype(jnp.dtype(dtype))


def oracle(x, kernel, grad, stride, zeros):
    """Output and gradients by the definition, in float64."""
    x, kernel, grad = (np.asarray(a, np.float64) for a in (x, kernel, grad))
    pad = int(zeros)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = [
        (n - k) // s + 1
        for n, k, s in zip(padded.shape[1:4], kernel.shape[:3], stride, strict=True)
    ]
    y, of_x, of_kernel = 0.0, np.zeros_like(padded), np.zeros_like(kernel)
    for offset in np.ndindex(*kernel.shape[:3]):
        window = tuple(
            slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, size, stride, strict=True)
        )
        seen = np.ascontiguousarray(padded[(slice(None), *window)])
        y = y + seen @ kernel[offset]
        if grad.shape == y.shape:
            of_kernel[offset] = np.tensordot(seen, grad, (range(4), range(4)))
            of_x[(slice(None), *window)] += grad @ kernel[offset].T
    inside = slice(pad, -pad or None)
    return y, of_x[:, :, inside, inside], of_kernel


def relative(value, expected):
    return np.linalg.norm(np.asarray(value, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "features"), SHAPES)
@pytest.mark.parametrize("zeros", [True, False])
def test_the_convolution_and_its_gradients_are_those_of_the_definition(
    shape, features, zeros, dtype
):
    if not zeros and min(shape[2:4]) < 3:
        pytest.skip("nothing is left without padding")
    x = draw(shape, dtype)
    kernel = draw((3, 3, 3, shape[-1], features), dtype)

    def both(x, kernel, grad):
        y, pull = jax.vjp(lambda *a: convolution.convolve(*a, zeros=zeros), x, kernel)
        return y, *pull(grad)

    y = jax.eval_shape(lambda *a: convolution.convolve(*a, zeros=zeros), x, kernel)
    grad = draw(y.shape, dtype)
    program = jax.jit(both, compiler_options=convolution.compiler_options())
    # Sums of up to 20,000 products in float32; bfloat16 rounds the result to 8 bits, and the
    # fastest CPU form sums in bfloat16 pairs.
    tolerance = {"float32": 2e-5, "bfloat16": 1e-2}[dtype]
    expected = oracle(x, kernel, grad, (1, 1, 1), zeros)
    for value, wanted in zip(program(x, kernel, grad), expected, strict=True):
        assert value.dtype == dtype
        assert relative(value, wanted) < tolerance


@pytest.mark.parametrize("zeros", [True, False])
def test_of_few_outputs_and_many_channels_one_product_is_made(zeros, monkeypatch):
    monkeypatch.setattr(convolution, "HAS_ONEDNN", True)  # this form needs none
    x, kernel = draw((1, 4, 3, 4, 5)), draw((3, 3, 3, 5, 192))
    convolve = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, zeros=zeros))
    assert "stablehlo.convolution" not in convolve.lower(x, kernel).as_text()
    expected, _, _ = oracle(x, kernel, np.zeros(()), (1, 1, 1), zeros)
    assert relative(convolve(x, kernel), expected) < 1e-6  # sums of 135 products


@pytest.mark.parametrize(
    ("shape", "features", "products"),
    [
        ((64, 27, 24, 24, 48), 32, True),
        ((64, 9, 6, 6, 128), 128, True),
        ((1, 123, 128, 192, 128), 48, False),  # many positions
        ((1, 18, 16, 24, 128), 1024, False),  # many channels
    ],
)
def test_on_gpus_small_convolutions_of_few_channels_are_products(shape, features, products):
    def both(x, kernel, grad):
        return jax.vjp(convolution.convolve, x, kernel)[1](grad)

    x, kernel = (
        jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (shape, (3, 3, 3, shape[-1], features))
    )
    grad = jax.eval_shape(convolution.convolve, x, kernel)
    text = jax.jit(both).trace(x, kernel, grad).lower(lowering_platforms=("cuda",)).as_text()
    assert ("stablehlo.convolution" not in text) == products


@pytest.mark.parametrize("zeros", [True, False])
def test_the_product_of_windows_has_the_gradients_of_the_definition(zeros):
    x, kernel = draw((2, 5, 7, 8, 3)), draw((3, 3, 3, 3, 4))
    form = functools.partial(convolution._on_gpu, stride=(1, 1, 1), zeros=zeros)

    def both(x, kernel, grad):
        y, pull = jax.vjp(form, x, kernel)
        return y, *pull(grad)

    grad = draw(jax.eval_shape(form, x, kernel).shape)
    expected = oracle(x, kernel, grad, (1, 1, 1), zeros)
    for value, wanted in zip(jax.jit(both)(x, kernel, grad), expected, strict=True):
        assert relative(value, wanted) < 1e-5  # float32 sums of a hundred products


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_strides_and_other_windows_work_too(stride):
    cases = [((1, 3, 3), "float32"), ((3, 3, 3), "float32"), ((3, 4, 4), "float32")]
    if stride != (1, 1, 1):
        cases.append(((3, 4, 4), "bfloat16"))
    for window, dtype in cases:
        x, kernel = draw((2, 5, 7, 8, 3), dtype), draw((*window, 3, 4), dtype)

        def convolve(x, kernel):
            return convolution.convolve(x, kernel, stride)

        def both(x, kernel, grad):
            y, pull = jax.vjp(convolve, x, kernel)
            return y, *pull(grad)

        grad = draw(jax.eval_shape(convolve, x, kernel).shape, dtype)
        expected = oracle(x, kernel, grad, stride, True)
        program = jax.jit(both, compiler_options=convolution.compiler_options())
        # Float32 sums of a hundred products; bfloat16 rounds to 8 bits.
        tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
        for value, wanted in zip(program(x, kernel, grad), expected, strict=True):
            assert relative(value, wanted) < tolerance, (window, dtype)


def test_a_convolution_maps_over_a_batch_and_recomputes():
    """What the networks do with it: remat, vmap over samples, scan."""
    x = draw((3, 1, 4, 5, 6, 2))
    kernel = draw((3, 3, 3, 2, 2))

    def loss(kernel, x):
        return jnp.sum(jnp.sin(jax.checkpoint(convolution.convolve)(x, kernel)))

    mapped = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(kernel, x)
    looped = np.stack([jax.jit(jax.grad(loss))(kernel, one) for one in x])
    np.testing.assert_allclose(mapped, looped, rtol=1e-4, atol=1e-5)
