"""Frames in memory, cut and scaled; transparency laid over white."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def over_white(picture: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a picture with transparency (RGBA, colours not premultiplied) over white."""
    colours, opacity = picture[..., :3].astype(np.uint16), picture[..., 3:].astype(np.uint16)
    return ((colours * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def resize_crop(
    frames: UInt8[np.ndarray, "t h w 3"],
    height: int,
    width: int,
    *,
    place: tuple[float, float] = (0.5, 0.5),
) -> UInt8[np.ndarray, "t {height} {width} 3"]:
    """Scales the frames to cover height x width, antialiased, and keeps a part of them.

    The kept part is a box with real-valued edges, so that the centre is not shifted. `place` says
    where it lies, down and across: 0 is the top or left edge, 1 the bottom or right one.
    """
    _check_size(height, width)
    stored_height, stored_width = frames.shape[1:3]
    scale = min(stored_height / height, stored_width / width)
    y = max((stored_height - height * scale) * place[0], 0.0)
    x = max((stored_width - width * scale) * place[1], 0.0)
    box = (x, y, min(x + width * scale, stored_width), min(y + height * scale, stored_height))
    return resized(frames, height, width, box)


def averaged(frames: UInt8[np.ndarray, "t h w 3"], factor: int) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Frames with sides 1/`factor` as long: the means of boxes of pixels.

    Raises:
      ValueError: if the sides are no multiples of the factor.
    """
    t, h, w, _ = frames.shape
    if h % factor or w % factor:
        raise ValueError(f"{h} x {w} pixels cannot be made {factor} times smaller")
    if factor == 1:
        return frames
    boxes = frames.reshape(t, h // factor, factor, w // factor, factor, 3)
    return np.rint(boxes.mean(axis=(2, 4))).astype(np.uint8)


def crop_to_aspect(
    frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "t _ _ 3"]:
    """Cuts the largest centred part with the aspect of height x width, in whole pixels.

    The new side is truncated and the offset is half of the rest, rounded down, as in the official
    `load_image_to_tensor_with_resize_and_crop`.
    """
    _check_size(height, width)
    stored_height, stored_width = frames.shape[1:3]
    aspect = width / height
    if stored_width / stored_height > aspect:
        kept = max(int(stored_height * aspect), 1)
        left = (stored_width - kept) // 2
        return frames[:, :, left : left + kept]
    kept = max(int(stored_width / aspect), 1)
    top = (stored_height - kept) // 2
    return frames[:, top : top + kept]


def _check_size(height: int, width: int) -> None:
    if height <= 0 or width <= 0:
        raise ValueError(f"height and width must be positive, got {height} x {width}")


def resized(
    frames: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    return np.stack(
        [
            np.asarray(
                Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box)
            )
            for frame in np.ascontiguousarray(frames)
        ]
    )
