"""Decoded frames, which are converted to pixels only when these are needed."""

import dataclasses
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from ltx_jax.data import pixels

# Without these flags swscale's shortcuts darken by about a level, again at each re-encoding.
EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
CONVERT = Interpolation.BICUBIC | EXACT
_REDUCE = Interpolation.AREA | EXACT
_HIGH_DYNAMIC_RANGE = (16, 18)  # transfer curves: SMPTE 2084 (PQ), and hybrid log-gamma
_FULL_RANGE = 2  # FFmpeg's number for full-range levels, from 0 on
UPRIGHT = (1, 0, 0, 1)


@dataclasses.dataclass(frozen=True)
class FrameGeometry:
    """How the frames of a stream are turned and stretched for display.

    Attributes:
      turn: signs (a, b, c, d) of the display matrix: x' = a x + c y and y' = b x + d y.
      pixel_aspect: width of a stored pixel over its height.
    """

    turn: tuple[int, int, int, int] = UPRIGHT
    pixel_aspect: float = 1.0

    @classmethod
    def of(cls, frame: VideoFrame, pixel_aspect: float) -> "FrameGeometry":
        """Reads the geometry of a stream from its first frame."""
        # The side data of a frame and the frame keep each other alive until Python's garbage
        # collector runs; a small copy has the same side data.
        small = VideoReformatter().reformat(frame, width=16, height=16, format="gray", threads=1)
        try:
            matrix = small.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV 18 refuses kinds of side data that it does not know, such as EXIF
            return cls(_QUARTER_TURNS.get(int(frame.rotation), UPRIGHT), pixel_aspect)
        if matrix is None:
            return cls(UPRIGHT, pixel_aspect)
        a, b, _, c, d = np.sign(np.frombuffer(bytes(matrix), np.int32)[:5]).tolist()
        is_quarter = (a == 0 and d == 0) or (b == 0 and c == 0)
        return cls((a, b, c, d) if is_quarter else UPRIGHT, pixel_aspect)

    @property
    def is_turned(self) -> bool:
        """Whether height and width change places."""
        return self.turn[0] == 0

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """Applies the turn and the mirroring."""
        a, b, c, d = self.turn
        if self.is_turned:
            picture, a, d = picture.swapaxes(0, 1), c, b
        return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


# `FrameGeometry.turn` for each rotation that PyAV reports, in degrees counter-clockwise.
_QUARTER_TURNS = {-90: (0, 1, -1, 0), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), -180: (-1, 0, 0, -1)}


class Converter:
    """Converts the frames of a stream to pixels.

    One converter serves a whole stream: a new one for every frame takes ten times as long.
    """

    def __init__(self):
        self._planar, self._packed = VideoReformatter(), VideoReformatter()

    def __call__(
        self, frame: VideoFrame, form: str, *, interpolation: Interpolation = CONVERT, **size: int
    ) -> np.ndarray:
        """The pixels in one of FFmpeg's formats; `size`: height and width, if not the frame's."""
        # One thread: distributing a small picture over several takes longer than converting it.
        options: dict[str, Any] = dict(interpolation=interpolation, threads=1, **size)
        if form != "rgb24":
            return self._packed.reformat(frame, format=form, **options).to_ndarray()
        # Through planes, the same levels take half the time: swscale's exact way to packed pixels
        # goes pixel by pixel.
        planes = self._planar.reformat(frame, format="gbrp", **options)
        return self._packed.reformat(planes, format="rgb24", threads=1).to_ndarray()


@dataclasses.dataclass(frozen=True)
class DecodedFrame:
    """A decoded frame and when it is on the screen, in seconds.

    Pictures made of it are upright and have square pixels.
    """

    begin: float
    end: float
    geometry: FrameGeometry
    _frame: VideoFrame
    _convert: Converter

    @property
    def is_broken(self) -> bool:
        """Whether the decoder found damage in it."""
        return bool(self._frame.is_corrupt)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, as shown."""
        height, width = self._square
        return (width, height) if self.geometry.is_turned else (height, width)

    @property
    def _square(self) -> tuple[int, int]:
        """Height and width with square pixels, before the turn."""
        return self._frame.height, max(round(self._frame.width * self.geometry.pixel_aspect), 1)

    @property
    def is_transparent(self) -> bool:
        """Whether anything in it may be transparent."""
        return any(component.is_alpha for component in self._frame.format.components)

    @property
    def unsupported_format(self) -> str:
        """Why its pixels would look wrong ("interlaced", "high dynamic range"), or ""."""
        if self._frame.interlaced_frame:
            return "interlaced"
        return "high dynamic range" if self._frame.color_trc in _HIGH_DYNAMIC_RANGE else ""

    def rgb(self) -> UInt8[np.ndarray, "h w 3"]:
        """All pixels, transparency laid over white."""
        if self.is_transparent:
            picture = pixels.over_white(self._convert(self._frame, "rgba"))
        elif self._is_deep_full_range:
            picture = self._rounded_down_to_8_bits()
        else:
            picture = self._convert(self._frame, "rgb24")
        height, width = self._square
        if width != self._frame.width:
            resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
            picture = np.asarray(resized)
        return self.geometry.upright(picture)

    def luma(self, longest: int) -> UInt8[np.ndarray, "h w"]:
        """Grey levels from 0 (black) to 255, averaged down to sides of at most `longest` pixels."""
        return self.geometry.upright(self._reduced("gray", longest))

    def bgr(self, longest: int) -> UInt8[np.ndarray, "h w 3"]:
        """Blue, green and red, averaged down to sides of at most `longest` pixels."""
        return self.geometry.upright(self._reduced("bgr24", longest))

    def _reduced(self, form: str, longest: int) -> np.ndarray:
        scale = min(longest / max(self._square), 1)
        height, width = (max(round(side * scale), 1) for side in self._square)
        return self._convert(self._frame, form, height=height, width=width, interpolation=_REDUCE)

    @property
    def _is_deep_full_range(self) -> bool:
        parts = self._frame.format.components
        is_deep = bool(parts) and parts[0].bits > 8
        return is_deep and self._frame.color_range == _FULL_RANGE

    def _rounded_down_to_8_bits(self) -> np.ndarray:
        """In n bits, white is 2^n - 1; swscale, converting to 8 bits, assumes 255 * 2^(n-8)."""
        bits = self._frame.format.components[0].bits
        white = 2**16 - 2 ** (16 - bits)
        deep = self._convert(self._frame, "rgb48le")
        return ((deep.astype(np.uint32) * 255 + white // 2) // white).clip(max=255).astype(np.uint8)
