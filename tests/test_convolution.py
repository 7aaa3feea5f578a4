import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ltx_jax.config import MeshConfig
from ltx_jax.models import convolution
from ltx_jax.runtime import platforms, sharding
from ltx_jax.runtime.compiled import Programs

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


MODES = {"zeros": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}


def oracle(x, kernel, grad, stride=(1, 1, 1), padding="zeros"):
    """Output and gradients by the definition, in float64."""
    x, kernel, grad = (np.asarray(a, np.float64) for a in (x, kernel, grad))
    sides = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))
    padded = np.pad(x, sides, mode=MODES[padding])
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
    # What a padded pixel gets belongs to the one that it repeats.
    positions = np.pad(np.arange(x.size).reshape(x.shape), sides, mode=MODES[padding])
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    if padding == "zeros":
        positions, of_x = positions[inside], of_x[inside]
    of_x = np.bincount(positions.ravel(), of_x.ravel(), x.size).reshape(x.shape)
    return y, of_x, of_kernel


def relative(value, expected):
    return np.linalg.norm(np.asarray(value, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "features"), SHAPES)
@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_the_convolution_and_its_gradients_are_those_of_the_definition(
    shape, features, padding, dtype
):
    x = draw(shape, dtype)
    kernel = draw((3, 3, 3, shape[-1], features), dtype)

    def both(x, kernel, grad):
        y, pull = jax.vjp(lambda *a: convolution.convolve(*a, padding=padding), x, kernel)
        return y, *pull(grad)

    y = jax.eval_shape(convolution.convolve, x, kernel)
    grad = draw(y.shape, dtype)
    program = jax.jit(both, compiler_options=convolution.compiler_options(few_rows=False))
    # Sums of up to 20,000 products in float32; bfloat16 rounds the result to 8 bits, and the
    # fastest CPU form sums in bfloat16 pairs.
    tolerance = {"float32": 2e-5, "bfloat16": 1e-2}[dtype]
    expected = oracle(x, kernel, grad, padding=padding)
    for value, wanted in zip(program(x, kernel, grad), expected, strict=True):
        assert value.dtype == dtype
        assert relative(value, wanted) < tolerance


@jax.jit
def convolved(x, kernel):
    """A program with one convolution."""
    return convolution.convolve(x, kernel)


def test_a_program_without_onednn_is_stored_and_computes_the_same(tmp_path):
    programs = Programs()
    programs.folder = tmp_path / "kept"
    programs.folder.mkdir(mode=0o700)
    x, kernel = draw((1, 4, 8, 8, 16)), draw((3, 3, 3, 16, 16))
    by_default = programs(convolved, x, kernel, compiler_options=convolution.compiler_options())
    stored = set(programs.folder.iterdir())
    assert bool(stored) != platforms.HAS_ONEDNN
    with platforms.storable_programs():
        assert convolution.compiler_options() is None
        again = Programs()
        again.folder = programs.folder
        result = again(convolved, x, kernel, compiler_options=convolution.compiler_options())
    assert len(set(programs.folder.iterdir())) == 1
    assert relative(result, by_default) < 2e-5


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_of_few_outputs_and_many_channels_one_product_is_made(padding, monkeypatch):
    monkeypatch.setattr(platforms, "HAS_ONEDNN", True)  # this form needs none
    x, kernel = draw((1, 4, 3, 4, 5)), draw((3, 3, 3, 5, 480))
    convolve = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, padding=padding))
    assert "stablehlo.convolution" not in convolve.lower(x, kernel).as_text()
    expected, _, _ = oracle(x, kernel, np.zeros(()), padding=padding)
    assert relative(convolve(x, kernel), expected) < 1e-6  # sums of 135 products


@pytest.mark.skipif(not platforms.HAS_ONEDNN, reason="jaxlib has no oneDNN here")
def test_matmuls_of_few_rows_are_those_of_onednn():
    x, kernel = draw((1, 4, 4, 6, 64)), draw((3, 3, 3, 64, 480))
    lowered = convolved.lower(x, kernel)
    texts = [
        lowered.compile(compiler_options=convolution.compiler_options(few_rows)).as_text() or ""
        for few_rows in (True, False)
    ]
    assert ["__onednn$matmul" in text for text in texts] == [True, False]


@pytest.mark.parametrize(
    ("shape", "features", "window", "stride", "products"),
    [
        ((64, 27, 24, 24, 48), 32, (3, 3, 3), (1, 1, 1), True),
        ((64, 9, 6, 6, 128), 128, (3, 3, 3), (1, 1, 1), True),
        ((16, 9, 6, 6, 128), 512, (3, 3, 3), (1, 1, 1), True),
        ((32, 27, 96, 96, 6), 32, (3, 4, 4), (1, 2, 2), True),
        ((32, 15, 24, 24, 64), 128, (3, 4, 4), (2, 2, 2), True),
        ((1, 123, 128, 192, 128), 48, (3, 3, 3), (1, 1, 1), False),  # many positions
        ((1, 18, 16, 24, 128), 1024, (3, 3, 3), (1, 1, 1), False),  # many channels
        ((64, 19, 64, 64, 512), 1, (3, 3, 3), (1, 1, 1), False),  # windows of much memory
        ((32, 19, 128, 128, 64), 128, (3, 4, 4), (2, 2, 2), False),  # many positions
    ],
)
def test_on_gpus_small_convolutions_of_few_channels_are_products(
    shape, features, window, stride, products
):
    def both(x, kernel, grad):
        return jax.vjp(lambda *a: convolution.convolve(*a, stride), x, kernel)[1](grad)

    x, kernel = (
        jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (shape, (*window, shape[-1], features))
    )
    grad = jax.eval_shape(lambda *a: convolution.convolve(*a, stride), x, kernel)
    text = jax.jit(both).trace(x, kernel, grad).lower(lowering_platforms=("cuda",)).as_text()
    assert ("stablehlo.convolution" not in text) == products


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_products_of_windows_have_the_outputs_and_gradients_of_the_definition(stride, dtype):
    x, kernel = draw((2, 5, 7, 8, 3), dtype), draw((3, 4, 4, 3, 4), dtype)
    settings = dict(stride=stride, pad=(1, 1))
    form = functools.partial(convolution._on_gpu, **settings)
    gradients = functools.partial(convolution._gradients_on_gpu, **settings)
    grad = draw(jax.eval_shape(form, x, kernel).shape, dtype)
    results = jax.jit(lambda x, kernel, grad: (form(x, kernel), *gradients(x, kernel, grad)))
    # Float32 sums of a hundred products; bfloat16 rounds the result to 8 bits.
    tolerance = {"float32": 1e-5, "bfloat16": 4e-3}[dtype]
    expected = oracle(x, kernel, grad, stride)
    for value, wanted in zip(results(x, kernel, grad), expected, strict=True):
        assert value.dtype == dtype
        assert relative(value, wanted) < tolerance


@pytest.mark.thorough
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
        expected = oracle(x, kernel, grad, stride)
        options = convolution.compiler_options(few_rows=False)
        program = jax.jit(both, compiler_options=options)
        # Float32 sums of a hundred products; bfloat16 rounds to 8 bits.
        tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
        for value, wanted in zip(program(x, kernel, grad), expected, strict=True):
            assert relative(value, wanted) < tolerance, (window, dtype)


# Two rows of outputs a device, samples split and not, channels split by outputs and by inputs, what
# does not divide, and no rows at all.
MESHES = [
    (dict(data=1, seq=4, fsdp=2), (2, 3, 8, 5, 8), 6),
    (dict(data=1, seq=4, fsdp=2), (1, 3, 16, 5, 6), 3),
    (dict(data=2, seq=2, tensor=2), (2, 3, 12, 4, 3), 4),
    (dict(data=2, seq=4), (3, 3, 6, 4, 3), 2),
    (dict(data=2, fsdp=4), (8, 3, 4, 4, 3), 4),
]
WINDOWS = [
    ((3, 3, 3), (1, 1, 1), "zeros"),
    ((3, 3, 3), (1, 1, 1), "replicate"),
    ((3, 3, 3), (1, 1, 1), "reflect"),
    ((3, 3, 3), (1, 1, 1), "circular"),
    ((3, 3, 3), (2, 2, 2), "zeros"),
    ((3, 3, 3), (2, 2, 2), "reflect"),
    ((3, 4, 4), (1, 2, 2), "zeros"),
    ((3, 4, 4), (1, 2, 2), "replicate"),
    ((3, 4, 4), (1, 1, 1), "zeros"),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("sizes", "shape", "features"), MESHES)
def test_devices_convolve_rows_and_samples_as_one_does(sizes, shape, features):
    mesh = sharding.make_mesh(MeshConfig(**sizes))
    for window, stride, padding in WINDOWS:
        kernel = draw((*window, shape[-1], features))

        def both(x, kernel, grad, stride=stride, padding=padding):
            y, pull = jax.vjp(lambda *a: convolution.convolve(*a, stride, padding), x, kernel)
            return y, *pull(grad)

        x = draw(shape)
        y = jax.eval_shape(lambda *a, s=stride: convolution.convolve(*a, s), x, kernel)
        grad = draw(y.shape)
        with sharding.use_mesh(mesh):
            layouts = [
                sharding.shardings(nn.LogicallyPartitioned(array, axes), mesh)
                for array, axes in (
                    (x, ("batch", None, "row", None, None)),
                    (kernel, (None, None, None, "conv_in", "conv_out")),
                    (grad, ("batch", None, "row", None, None)),
                )
            ]
            options = convolution.compiler_options(few_rows=False)
            program = jax.jit(both, in_shardings=layouts, compiler_options=options)
            results = program(x, kernel, grad)
        for value, wanted in zip(results, oracle(x, kernel, grad, stride, padding), strict=True):
            assert relative(value, wanted) < 1e-5, (window, stride, padding)  # float32 sums


def test_a_convolution_maps_over_a_batch_and_recomputes():
    """What the networks do with it: remat, vmap over samples, scan."""
    x = draw((3, 1, 4, 5, 6, 2))
    kernel = draw((3, 3, 3, 2, 2))

    def loss(kernel, x):
        return jnp.sum(jnp.sin(jax.checkpoint(convolution.convolve)(x, kernel)))

    mapped = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(kernel, x)
    looped = np.stack([jax.jit(jax.grad(loss))(kernel, one) for one in x])
    np.testing.assert_allclose(mapped, looped, rtol=1e-4, atol=1e-5)
