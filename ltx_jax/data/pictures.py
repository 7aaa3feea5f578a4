"""Pictures and animations that Pillow reads: upright, transparency over white, sizes limited."""

import contextlib
import re
import struct
import warnings
import zlib
from collections.abc import Generator, Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ltx_jax.data import inputs, pixels

MAX_PIXELS = 178_956_970  # of a picture, or a frame of a video: the limit of Pillow
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF")
# Only in these formats are several pictures in a file an animation: in others they may be the
# preview of a photograph, or the pages of a TIFF.
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
# What Pillow's readers raise for damaged files; AVIF's raises RuntimeError.
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, IndexError, KeyError, OverflowError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)

# Pillow warns from half of its limit on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class AnimationFrame(NamedTuple):
    """A picture of an animation and how long it is on the screen, in seconds."""

    picture: UInt8[np.ndarray, "h w 3"]
    seconds: float


def check_size(path: inputs.File, pixel_count: int, limit: int | None = None) -> None:
    """Refuses a picture, or a frame of a video, that would fill the memory.

    Args:
      path: names it in the error.
      pixel_count: width times height.
      limit: largest number of pixels; None means `MAX_PIXELS`.

    Raises:
      ValueError: naming the file and its size.
    """
    limit = MAX_PIXELS if limit is None else limit
    if pixel_count > limit:
        raise ValueError(
            f"{path} is too large: {pixel_count / 1e6:.0f} megapixels, and at most "
            f"{limit / 1e6:.0f} are read; scale it down first"
        )


@contextlib.contextmanager
def _open(path: inputs.File) -> Iterator[Image.Image | None]:
    """Opens a picture by its content; None if it is none. Pillow's errors become ValueErrors."""
    inputs.check(path)
    if _is_heic(path):
        _register_heic(path)
    Image.init()
    # Only the formats above: Pillow also opens some video files.
    formats = [name for name in _FORMATS if name in Image.OPEN]
    image = None
    try:
        image = Image.open(inputs.handle(path), formats=formats)
    except Image.UnidentifiedImageError:
        pass
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    with image or contextlib.nullcontext():
        try:
            yield image
        except _DAMAGE as error:
            raise _damaged(path, error) from error


def _damaged(path: inputs.File, error: Exception) -> ValueError:
    if isinstance(error, Image.DecompressionBombError):
        # There may be no picture object to ask for the size, but the message contains it.
        check_size(path, int(re.findall("[0-9]+", str(error))[0]))
    return ValueError(f"{path} is a damaged or unreadable image: {error}")


def _is_heic(path: inputs.File) -> bool:
    """Whether a file is HEIC, by its first brands; an AVIF file may also have the generic one."""
    start = inputs.head(path, 64)
    size, brand = int.from_bytes(start[:4]), start[8:12]
    is_avif = b"avif" in start[16:size]
    return start[4:8] == b"ftyp" and brand in _HEIC_BRANDS and not is_avif


def _register_heic(path: inputs.File) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise ValueError(
            f"{path} is a HEIC picture, which needs pillow-heif: pip install 'ltx-jax[heic]', or "
            "save it as JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def kind(path: inputs.File) -> Literal["picture", "animation", "other"]:
    """What a file is, by its content: a still picture, an animated one (GIF, PNG, WebP, AVIF) or
    something else.

    Raises:
      ValueError: if it cannot be opened, or is a picture that is too large or damaged, or a HEIC
        picture where pillow-heif is not installed.
    """
    with _open(path) as image:
        if image is None:
            return "other"
        several = image.format in _ANIMATED and _count(image) > 1
        return "animation" if several else "picture"


def is_image(path: inputs.File) -> bool:
    """Whether a file is a still picture, by its content.

    Raises:
      ValueError: as `kind`.
    """
    return kind(path) == "picture"


def read_image(path: inputs.File, *, max_pixels: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture upright (EXIF orientation applied), transparency laid over white.

    Raises:
      ValueError: if it is no picture, has more than `max_pixels`, or as `kind`.
    """
    with _open(path) as image:
        if image is not None:
            check_size(path, image.width * image.height, max_pixels)
            return _upright(image)
    raise ValueError(f"{path} is not an image (PNG, JPEG, WebP, ...)")


def read_animation(path: inputs.File) -> Generator[AnimationFrame, None, None]:
    """The frames of an animation, upright, transparency laid over white.

    A frame that is shown for 1/100 s or less by its file is shown for 1/10 s, as in browsers.

    Raises:
      ValueError: as `kind`.
    """
    with _open(path) as image:
        if image is None:
            return
        # The first picture of a PNG may be meant only for viewers that cannot play animations.
        for number in range(int(image.info.get("default_image", False)), _count(image)):
            image.seek(number)
            picture = _upright(image)  # loads it; before, WebP and AVIF lack the duration
            seconds = (image.info.get("duration") or 0) / 1000
            yield AnimationFrame(picture, 0.1 if seconds <= 0.01 else seconds)


def _count(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1)


def _upright(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip
        return np.repeat((np.asarray(image) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        return pixels.over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))
