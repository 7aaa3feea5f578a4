"""The 3-D convolution, in the form that each platform is fast at.

XLA's CPU backend needs help: its 3-D convolution is slow, and its gradient of the kernel slower
still. With oneDNN (jax 0.11 and `compiler_options`) the 3-D convolution is three to ten times as
fast, and the gradients are fast and right once written as forward convolutions (the native bfloat16
gradient of the kernel is wrong at some shapes). Without oneDNN, a sum of 2-D convolutions is the
fastest form of both. On GPUs small convolutions of few channels are products of windows. The choice
falls where the program is lowered, so a program compiled here for another platform gets that
platform's own convolution.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltx_jax.runtime.platforms import HAS_ONEDNN, onednn_options, platform

Stride = tuple[int, int, int]  # frames, rows, columns

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")
_FEW_CHANNELS = 128
_FEW_OPERATIONS = 1e11  # 0.2 ms of a Hopper's products


def compiler_options() -> dict[str, Any] | None:
    """What to compile programs with many convolutions with, for the current mesh's devices."""
    if platform() == "gpu":  # channels first would be a quarter slower on Hopper
        return {"xla_gpu_force_conv_nhwc": True}
    return onednn_options()


def convolve(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "k p q c d"],
    stride: Stride = (1, 1, 1),
    zeros: bool = True,
) -> Float[Array, "b t2 h2 w2 d"]:
    """Convolves without padding in time, and with zeros (one pixel) or nothing in space.

    Windows of 3 x 3 pixels keep the size; those of 4 x 4 halve an even one at a stride of 2.
    """
    return _convolve(x, kernel, stride, zeros)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, stride: Stride, zeros: bool) -> Array:
    settings = dict(stride=stride, zeros=zeros)
    cpu = _by_onednn if HAS_ONEDNN else _sum_of_frames
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(cpu, **settings),
        cuda=functools.partial(_on_gpu, **settings),
        default=functools.partial(_native, **settings),
    )


def _forward(
    x: Array, kernel: Array, stride: Stride, zeros: bool
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, zeros), (x, kernel)


def _backward(
    stride: Stride, zeros: bool, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    def gradient_of(function: Any) -> Any:
        function = functools.partial(function, stride=stride, zeros=zeros)
        return lambda x, kernel, grad: jax.vjp(function, x, kernel)[1](grad)

    if not HAS_ONEDNN:
        cpu = gradient_of(_sum_of_frames)
    elif stride == (1, 1, 1):
        cpu = functools.partial(gradients_by_convolution, zeros=zeros)
    else:
        cpu = gradient_of(_over_cells)
    return jax.lax.platform_dependent(
        *saved, grad, cpu=cpu, cuda=gradient_of(_on_gpu), default=gradient_of(_native)
    )


_convolve.defvjp(_forward, _backward)


def _native(x: Array, kernel: Array, *, stride: Stride, zeros: bool) -> Array:
    space = (int(zeros), int(zeros))
    return jax.lax.conv_general_dilated(
        x, kernel, stride, ((0, 0), space, space), dimension_numbers=_LAYOUT
    )


def _on_gpu(x: Array, kernel: Array, *, stride: Stride, zeros: bool) -> Array:
    # Small ones of few channels are slow in cuDNN unless XLA tries its algorithms one by one, which
    # takes minutes for a network of them. A product needs no trials.
    few = max(kernel.shape[-2:]) <= _FEW_CHANNELS
    small = 2 * math.prod(x.shape[:-1]) * kernel.size <= _FEW_OPERATIONS
    if stride == (1, 1, 1) and few and small:
        return _product_of_windows(x, kernel, zeros=zeros)
    return _native(x, kernel, stride=stride, zeros=zeros)


def _by_onednn(x: Array, kernel: Array, *, stride: Stride, zeros: bool) -> Array:
    # At so few outputs most of the time goes into the kernel, which oneDNN lays out anew.
    if stride == (1, 1, 1) and 4 * math.prod(x.shape[:-1]) <= kernel.shape[-1]:
        return _product_of_windows(x, kernel, zeros=zeros)
    # Apart from what follows: XLA would make additions part of oneDNN's call, and one of a
    # broadcast (injected noise) falls to a reference kernel, 15 times as slow.
    return jax.lax.optimization_barrier(_native(x, kernel, stride=stride, zeros=zeros))


def _product_of_windows(x: Array, kernel: Array, *, zeros: bool) -> Array:
    """One matrix product: the pixels of every window side by side, times the kernel as it lies."""
    pad = (0, int(zeros), int(zeros))
    x = jnp.pad(x, ((0, 0), *((p, p) for p in pad), (0, 0)))
    *window, c, d = kernel.shape
    t, h, w = (n - k + 1 for n, k in zip(x.shape[1:4], window, strict=True))
    pixels = [x[:, i : i + t, j : j + h, k : k + w] for i, j, k in np.ndindex(*window)]
    windows = jnp.concatenate(pixels, axis=-1)
    return windows @ kernel.reshape(math.prod(window) * c, d)


def _sum_of_frames(x: Array, kernel: Array, *, stride: Stride, zeros: bool) -> Array:
    """One 2-D convolution per frame of the kernel, summed in float32 as inside one kernel."""
    b, t, h, w, c = x.shape
    frames = (t - kernel.shape[0]) // stride[0] + 1
    total = jnp.zeros((), jnp.float32)
    for i, taps in enumerate(kernel):
        seen = x[:, i : i + (frames - 1) * stride[0] + 1 : stride[0]]
        y = jax.lax.conv_general_dilated(
            seen.reshape(b * frames, h, w, c),
            taps,
            stride[1:],
            ((int(zeros), int(zeros)),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        total = y.astype(jnp.float32) + total.reshape((1,) * (y.ndim - total.ndim) + total.shape)
    return total.astype(x.dtype).reshape(b, frames, *total.shape[1:])


def _over_cells(x: Array, kernel: Array, *, stride: Stride, zeros: bool) -> Array:
    """A strided convolution as one of stride 1 over cells, each with all its pixels as channels."""
    window = kernel.shape[:3]
    pad = (0, int(zeros), int(zeros))
    outputs = [
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x.shape[1:4], pad, window, stride, strict=True)
    ]
    cells = [-(-k // s) for k, s in zip(window, stride, strict=True)]  # of the window
    needed = [(n + k - 1) * s for n, k, s in zip(outputs, cells, stride, strict=True)]
    ends = [m - n - p for m, n, p in zip(needed, x.shape[1:4], pad, strict=True)]  # or cut off
    x = jax.lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0), *((p, e, 0) for p, e in zip(pad, ends, strict=True)), (0, 0, 0)],
    )
    widened = [(0, n * s - k) for n, s, k in zip(cells, stride, window, strict=True)]
    kernel = jnp.pad(kernel, (*widened, (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    st, sh, sw = stride
    x = x.reshape(b, t // st, st, h // sh, sh, w // sw, sw, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    x = x.reshape(*x.shape[:4], -1)
    t, h, w, _, d = kernel.shape
    kernel = kernel.reshape(t // st, st, h // sh, sh, w // sw, sw, c, d)
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5, 6, 7).reshape(*cells, -1, d)
    return _convolve(x, kernel, (1, 1, 1), False)


def gradients_by_convolution(
    x: Array, kernel: Array, grad: Array, *, zeros: bool
) -> tuple[Array, Array]:
    """Both gradients at stride 1, each as one forward convolution."""
    depth, rows, columns = kernel.shape[:3]
    pad = int(zeros)
    flipped = jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4)
    spread = grad
    if grad.shape[-1] == 1:
        # Of one channel and one frame in bfloat16 oneDNN's result is wrong, and another one every
        # time (jax 0.11.2): a second channel of zeros.
        spread = jnp.pad(grad, ((0, 0),) * 4 + ((0, 1),))
        flipped = jnp.pad(flipped, ((0, 0),) * 3 + ((0, 1), (0, 0)))
    of_x = jax.lax.conv_general_dilated(
        spread,
        flipped,
        (1, 1, 1),
        [(size - 1 - p, size - 1 - p) for size, p in ((depth, 0), (rows, pad), (columns, pad))],
        dimension_numbers=_LAYOUT,
    )

    # The kernel's is a sum over samples, frames, rows and columns. Frames and rows slide as the
    # window of a convolution, samples and columns are its channels, and what meets the columns of
    # the kernel lies side by side.
    x = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
    b, t, h, w, d = grad.shape
    c = x.shape[-1]
    shifted = jnp.stack([x[:, :, :, i : i + w] for i in range(columns)], axis=3)
    shifted = shifted.transpose(1, 2, 3, 5, 0, 4).reshape(1, *x.shape[1:3], columns * c, b * w)
    window = grad.transpose(1, 2, 0, 3, 4).reshape(t, h, 1, b * w, d)
    of_kernel = jax.lax.conv_general_dilated(
        shifted, window, (1, 1, 1), "VALID", dimension_numbers=_LAYOUT
    )
    return of_x, of_kernel.reshape(kernel.shape)
