"""The 3-D convolution, in the fastest form for each platform, and sharded over rows.

On a mesh, each device convolves its own samples and rows, together with the rows of neighbouring
devices that its windows overlap. This uses `shard_map` to avoid XLA's partitioner, which has a bug:
if it splits the sum over input channels among some of the devices, it adds up the parts of all
devices, so that outputs and gradients are several times too large (`tests/test_partitioner.py`).

XLA's CPU backend has a slow 3-D convolution, and its gradient with respect to the kernel is even
slower. With oneDNN (jax 0.11 or newer, and `compiler_options`), the 3-D convolution is three to ten
times as fast. Its gradients are written as forward convolutions, since the native ones are slow,
and the native bfloat16 gradient of the kernel is wrong for some shapes. Without oneDNN, a sum of
2-D convolutions is fastest, forward and backward. On GPUs, small convolutions with few channels are
computed as one matmul over their windows, and so are their gradients. The form is chosen when the
program is lowered, so that a program compiled here for another platform gets that platform's form.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ltx_jax.runtime import sharding
from ltx_jax.runtime.platforms import onednn_options, platform, uses_onednn

Stride = tuple[int, int, int]  # frames, rows, columns
Pad = tuple[int, int]  # zeros on each side of the rows, and on each side of the columns
Padding = Literal["zeros", "replicate", "reflect", "circular"]

_PAD_MODES = {"replicate": "edge", "reflect": "reflect", "circular": "wrap"}
_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")
# The limits of a small convolution.
_FEW_CHANNELS, _MANY_CHANNELS = 128, 512  # of the inputs or outputs, and of the other side
_FEW_OPERATIONS = 1e11  # 0.2 ms of matmuls on a Hopper GPU
_FEW_PIXELS = 2e9  # in all windows; 4 GB in bfloat16


def compiler_options(few_rows: bool = True) -> dict[str, Any] | None:
    """XLA options for programs with many convolutions, for the current mesh's devices.

    Args:
      few_rows: whether matmuls have few rows, as those of `_matmul_over_windows` in sampling. Not
        so in programs with gradients or with a transformer.
    """
    if platform() == "gpu":
        return {
            # XLA's default, channels first, is a quarter slower on Hopper.
            "xla_gpu_force_conv_nhwc": True,
            # XLA would compile and time dozens of its own matmul kernels for each shape.
            "xla_gpu_enable_triton_gemm": False,
        }
    return onednn_options(few_rows)


def convolve(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "k p q c d"],
    stride: Stride = (1, 1, 1),
    padding: Padding = "zeros",
) -> Float[Array, "b t2 h2 w2 d"]:
    """Convolves without padding in time, and with one pixel of padding on each side in space.

    Windows of 3 x 3 pixels keep the size; windows of 4 x 4 with a stride of 2 halve an even size.
    On a mesh, the output is sharded like activations (`sharding.constrain`): samples, and rows over
    `seq`.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:  # 0 without a mesh
        return _on_device(x, kernel, stride, padding)
    return _on_mesh(x, kernel, stride, padding)


def _on_device(
    x: Array, kernel: Array, stride: Stride, padding: Padding, pad_rows: bool = True
) -> Array:
    rows = int(pad_rows)
    if padding == "zeros":
        return _convolve(x, kernel, stride, (rows, 1))
    sides = ((0, 0), (0, 0), (rows, rows), (1, 1), (0, 0))
    return _convolve(jnp.pad(x, sides, mode=_PAD_MODES[padding]), kernel, stride, (0, 0))


# The custom gradient is defined outside of `shard_map`, so that the saved residuals are the sharded
# input and kernel, without neighbours' rows and without a gathered kernel.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _on_mesh(x: Array, kernel: Array, stride: Stride, padding: Padding) -> Array:
    layout, on_shard = _split(x.shape, kernel.shape, stride, padding)
    return jax.shard_map(on_shard, in_specs=(layout, P()), out_specs=layout)(x, kernel)


def _on_mesh_forward(
    x: Array, kernel: Array, stride: Stride, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return _on_mesh(x, kernel, stride, padding), (x, kernel)


def _on_mesh_backward(
    stride: Stride, padding: Padding, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    layout, on_shard = _split(saved[0].shape, saved[1].shape, stride, padding)

    def gradients(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(on_shard, x, kernel)[1](grad)

    return jax.shard_map(gradients, in_specs=(layout, P(), layout), out_specs=(layout, P()))(
        *saved, grad
    )


_on_mesh.defvjp(_on_mesh_forward, _on_mesh_backward)


def _split(
    shape: tuple[int, ...], window: tuple[int, ...], stride: Stride, padding: Padding
) -> tuple[P, Callable[[Array, Array], Array]]:
    """The sharding of both input and output, and the function that convolves one device's shard."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = (shape[2] + 2 - window[1]) // stride[1] + 1  # of the output
    axes = ("batch", None, "row" if rows * stride[1] == shape[2] else None, None, None)
    layout = sharding.spec(sharding.divisible_axes((shape[0], 1, rows, 1, 1), axes, mesh))
    split_over = tuple(jax.tree.leaves(tuple(layout)))
    shares_rows = "seq" in split_over and mesh.shape["seq"] > 1

    def on_shard(x: Array, kernel: Array) -> Array:
        kernel = jax.lax.pcast(kernel, split_over, to="varying")  # so its gradients are summed
        if shares_rows:
            x = _with_neighbours(x, window[1] - 1 - stride[1], padding)
        return _on_device(x, kernel, stride, padding, pad_rows=not shares_rows)

    return layout, on_shard


def _with_neighbours(x: Array, after: int, padding: Padding) -> Array:
    """Extends a device's rows by the last row of the device above, and by the first `after` rows (0
    or 1) of the device below; at the edges of the picture, by rows of padding."""
    count, index = jax.lax.axis_size("seq"), jax.lax.axis_index("seq")
    down = [(i, (i + 1) % count) for i in range(count if padding == "circular" else count - 1)]
    up = [(j, i) for i, j in down]
    above = jax.lax.ppermute(x[:, :, -1:], "seq", down)  # zeros on devices that receive nothing
    below = jax.lax.ppermute(x[:, :, :1], "seq", up)
    if padding in ("replicate", "reflect"):
        i = 1 if padding == "reflect" else 0
        above = jnp.where(index == 0, x[:, :, i : i + 1], above)
        below = jnp.where(index == count - 1, jnp.flip(x, 2)[:, :, i : i + 1], below)
    return jnp.concatenate([above, x, below][: 2 + after], axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, stride: Stride, pad: Pad) -> Array:
    settings = dict(stride=stride, pad=pad)
    cpu = _by_onednn if uses_onednn() else _sum_of_frames
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(cpu, **settings),
        cuda=functools.partial(_on_gpu, **settings),
        default=functools.partial(_native, **settings),
    )


def _forward(
    x: Array, kernel: Array, stride: Stride, pad: Pad
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, pad), (x, kernel)


def _backward(
    stride: Stride, pad: Pad, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    def gradient_of(function: Any) -> Any:
        function = functools.partial(function, stride=stride, pad=pad)
        return lambda x, kernel, grad: jax.vjp(function, x, kernel)[1](grad)

    if not uses_onednn():
        cpu = gradient_of(_sum_of_frames)
    elif stride == (1, 1, 1):
        cpu = functools.partial(gradients_by_convolution, pad=pad)
    else:
        cpu = gradient_of(_over_cells)
    cuda = functools.partial(_gradients_on_gpu, stride=stride, pad=pad)
    return jax.lax.platform_dependent(
        *saved, grad, cpu=cpu, cuda=cuda, default=gradient_of(_native)
    )


_convolve.defvjp(_forward, _backward)


def _native(x: Array, kernel: Array, *, stride: Stride, pad: Pad) -> Array:
    sides = ((0, 0), *((p, p) for p in pad))
    return jax.lax.conv_general_dilated(x, kernel, stride, sides, dimension_numbers=_LAYOUT)


def _is_small(x: Array, kernel: Array, stride: Stride) -> bool:
    """Whether a convolution is computed as a matmul on GPUs.

    Small convolutions with few channels are slow in cuDNN, unless XLA autotunes its algorithms,
    which takes minutes for a whole network.
    """
    window, (c, d) = kernel.shape[:3], kernel.shape[3:]
    outputs = math.prod(x.shape[:-1]) // math.prod(stride)
    pixels = outputs * max(math.prod(window) * c, math.prod(_in_cells(window, stride)) * d)
    few = min(c, d) <= _FEW_CHANNELS and max(c, d) <= _MANY_CHANNELS
    return few and pixels <= _FEW_PIXELS and 2 * outputs * kernel.size <= _FEW_OPERATIONS


def _on_gpu(x: Array, kernel: Array, *, stride: Stride, pad: Pad) -> Array:
    form = _matmul_over_windows if _is_small(x, kernel, stride) else _native
    return form(x, kernel, stride=stride, pad=pad)


def _gradients_on_gpu(
    x: Array, kernel: Array, grad: Array, *, stride: Stride, pad: Pad
) -> tuple[Array, Array]:
    """The gradients with respect to x and kernel; of small convolutions, each is one matmul.

    JAX's own gradient of `_matmul_over_windows` would add up one padded array for each pixel of a
    window, rounded to the dtype of x; a matmul sums in float32.
    """
    if not _is_small(x, kernel, stride):
        native = functools.partial(_native, stride=stride, pad=pad)
        return jax.vjp(native, x, kernel)[1](grad)
    windows = _windows(x, kernel.shape[:3], stride, (0, *pad))
    positions = tuple(range(grad.ndim - 1))
    of_kernel = jax.lax.dot_general(windows, grad, ((positions, positions), ((), ())))
    return _gradient_of_input(x, kernel, grad, stride, pad), of_kernel.reshape(kernel.shape)


def _gradient_of_input(x: Array, kernel: Array, grad: Array, stride: Stride, pad: Pad) -> Array:
    """The matmul of the windows of `grad` with the flipped kernel; with a stride, over cells."""
    if stride != (1, 1, 1):

        def to_cells(x: Array) -> tuple[Array, Array]:
            return _cells(x, kernel, stride=stride, pad=pad)

        cells, pull, kernel_of_cells = jax.vjp(to_cells, x, has_aux=True)
        of_cells = _gradient_of_input(cells, kernel_of_cells, grad, (1, 1, 1), (0, 0))
        return pull(of_cells)[0]
    window = kernel.shape[:3]
    around = tuple(k - 1 - side for k, side in zip(window, (0, *pad), strict=True))
    flipped = jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4)
    return _windows(grad, window, stride, around) @ flipped.reshape(-1, flipped.shape[-1])


def _by_onednn(x: Array, kernel: Array, *, stride: Stride, pad: Pad) -> Array:
    # With few outputs, oneDNN would spend most of the time on reordering the kernel.
    if stride == (1, 1, 1) and 4 * math.prod(x.shape[:-1]) <= kernel.shape[-1]:
        return _matmul_over_windows(x, kernel, stride=stride, pad=pad)
    # The barrier keeps XLA from fusing additions into oneDNN's call: with an addition of a
    # broadcast array (injected noise), oneDNN uses a reference kernel that is 15 times slower.
    return jax.lax.optimization_barrier(_native(x, kernel, stride=stride, pad=pad))


def _matmul_over_windows(x: Array, kernel: Array, *, stride: Stride, pad: Pad) -> Array:
    """Convolution as one matmul of the pixels of every window with the kernel."""
    windows = _windows(x, kernel.shape[:3], stride, (0, *pad))
    return windows @ kernel.reshape(-1, kernel.shape[-1])


def _windows(
    x: Array, window: tuple[int, ...], stride: Stride, sides: tuple[int, ...]
) -> Float[Array, "b t h w k"]:
    """The concatenated pixels of every window, after adding zeros to the sides."""
    x = jnp.pad(x, ((0, 0), *((side, side) for side in sides), (0, 0)))
    counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:4], window, stride, strict=True)]

    def pixels(first: tuple[int, ...]) -> Array:
        """The pixels at one place of all windows."""
        ends = [i + (n - 1) * s + 1 for i, n, s in zip(first, counts, stride, strict=True)]
        return jax.lax.slice(x, (0, *first, 0), (len(x), *ends, x.shape[-1]), (1, *stride, 1))

    return jnp.concatenate([pixels(first) for first in np.ndindex(*window)], axis=-1)


def _sum_of_frames(x: Array, kernel: Array, *, stride: Stride, pad: Pad) -> Array:
    """Convolution as one 2-D convolution per frame of the kernel, summed in float32."""
    b, t, h, w, c = x.shape
    frames = (t - kernel.shape[0]) // stride[0] + 1
    total = jnp.zeros((), jnp.float32)
    for i, taps in enumerate(kernel):
        inputs = x[:, i : i + (frames - 1) * stride[0] + 1 : stride[0]]
        y = jax.lax.conv_general_dilated(
            inputs.reshape(b * frames, h, w, c),
            taps,
            stride[1:],
            tuple((p, p) for p in pad),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        total = y.astype(jnp.float32) + total.reshape((1,) * (y.ndim - total.ndim) + total.shape)
    return total.astype(x.dtype).reshape(b, frames, *total.shape[1:])


def _over_cells(x: Array, kernel: Array, *, stride: Stride, pad: Pad) -> Array:
    """A strided convolution, computed as one of stride 1 after space-to-depth by the stride."""
    return _convolve(*_cells(x, kernel, stride=stride, pad=pad), (1, 1, 1), (0, 0))


def _cells(x: Array, kernel: Array, *, stride: Stride, pad: Pad) -> tuple[Array, Array]:
    """Space-to-depth by the stride of the padded input and of the kernel."""
    window = kernel.shape[:3]
    before = (0, *pad)
    outputs = [
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x.shape[1:4], before, window, stride, strict=True)
    ]
    cells = _in_cells(window, stride)
    needed = [(n + k - 1) * s for n, k, s in zip(outputs, cells, stride, strict=True)]
    ends = [m - n - p for m, n, p in zip(needed, x.shape[1:4], before, strict=True)]  # < 0: crop
    x = jax.lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0), *((p, e, 0) for p, e in zip(before, ends, strict=True)), (0, 0, 0)],
    )
    widened = [(0, n * s - k) for n, s, k in zip(cells, stride, window, strict=True)]
    kernel = jnp.pad(kernel, (*widened, (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    st, sh, sw = stride
    x = x.reshape(b, t // st, st, h // sh, sh, w // sw, sw, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    x = x.reshape(*x.shape[:4], -1)
    t, h, w, _, d = kernel.shape
    kernel = kernel.reshape(t // st, st, h // sh, sh, w // sw, sw, c, d)
    return x, kernel.transpose(0, 2, 4, 1, 3, 5, 6, 7).reshape(*cells, -1, d)


def _in_cells(window: tuple[int, ...], stride: Stride) -> list[int]:
    """The size of a window in cells of one stride."""
    return [-(-k // s) for k, s in zip(window, stride, strict=True)]


def gradients_by_convolution(
    x: Array, kernel: Array, grad: Array, *, pad: Pad
) -> tuple[Array, Array]:
    """The gradients with respect to x and kernel at stride 1, each as one forward convolution."""
    depth, rows, columns = kernel.shape[:3]
    top, left = pad
    flipped = jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4)
    spread = grad
    if grad.shape[-1] == 1:
        # For one channel and one frame in bfloat16, oneDNN's result is wrong, and differs from run
        # to run (jax 0.11.2); a second channel of zeros avoids this.
        spread = jnp.pad(grad, ((0, 0),) * 4 + ((0, 1),))
        flipped = jnp.pad(flipped, ((0, 0),) * 3 + ((0, 1), (0, 0)))
    of_x = jax.lax.conv_general_dilated(
        spread,
        flipped,
        (1, 1, 1),
        [(size - 1 - p, size - 1 - p) for size, p in ((depth, 0), (rows, top), (columns, left))],
        dimension_numbers=_LAYOUT,
    )

    # The kernel's gradient sums over samples, frames, rows and columns. It is written as a
    # convolution whose window is the frames and rows of `grad`, and whose input channels are the
    # samples and columns. Shifted copies of x, one per column of the kernel, are stacked along the
    # columns of the input.
    x = jnp.pad(x, ((0, 0), (0, 0), (top, top), (left, left), (0, 0)))
    b, t, h, w, d = grad.shape
    c = x.shape[-1]
    shifted = jnp.stack([x[:, :, :, i : i + w] for i in range(columns)], axis=3)
    shifted = shifted.transpose(1, 2, 3, 5, 0, 4).reshape(1, *x.shape[1:3], columns * c, b * w)
    window = grad.transpose(1, 2, 0, 3, 4).reshape(t, h, 1, b * w, d)
    of_kernel = jax.lax.conv_general_dilated(
        shifted, window, (1, 1, 1), "VALID", dimension_numbers=_LAYOUT
    )
    return of_x, of_kernel.reshape(kernel.shape)
