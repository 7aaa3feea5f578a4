"""Frames as they leave the decoder: converted only as far as somebody looks at them."""

import dataclasses
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image

_TRANSPARENT = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16", "ayuv")  # FFmpeg's
_HIGH_DYNAMIC_RANGE = (16, 18)  # transfer curves: SMPTE 2084 (PQ), and hybrid log-gamma


@dataclasses.dataclass(frozen=True)
class Shown:
    """A decoded frame and when it is on the screen, in seconds. Pictures made of it are upright."""

    begin: float
    end: float
    _frame: Any  # of PyAV
    _converter: VideoReformatter  # shared: a new one for every frame takes ten times as long

    @property
    def is_broken(self) -> bool:
        """Whether the decoder found damage in it."""
        return bool(self._frame.is_corrupt)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        size = self._frame.height, self._frame.width
        return size[::-1] if self._is_turned else size

    @property
    def oddity(self) -> str:
        """What keeps a frame from being shown as it is; mostly nothing."""
        if self._frame.interlaced_frame:
            return "interlaced"
        if self._frame.format.name.startswith(_TRANSPARENT):
            return "transparent"
        return "high dynamic range" if self._frame.color_trc in _HIGH_DYNAMIC_RANGE else ""

    def rgb(self, pixel_aspect: float = 1.0) -> UInt8[np.ndarray, "h w 3"]:
        """All pixels; `pixel_aspect` is the width of a stored one over its height."""
        picture = self._converted("rgb24")
        if pixel_aspect not in (0, 1):
            size = max(round(self._frame.width * pixel_aspect), 1), self._frame.height
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        return self._upright(picture)

    def luma(self, longest: int) -> UInt8[np.ndarray, "h w"]:
        """Grey levels from black, 0, to white, 255, averaged down so that no side is longer."""
        return self._upright(self._converted("gray", **self._reduced(longest)))

    def bgr(self, longest: int) -> UInt8[np.ndarray, "h w 3"]:
        """Blue, green and red, averaged down so that no side is longer."""
        return self._upright(self._converted("bgr24", **self._reduced(longest)))

    def _reduced(self, longest: int) -> dict[str, Any]:
        height, width = self._frame.height, self._frame.width
        scale = min(longest / max(height, width), 1)
        size = (max(round(side * scale), 1) for side in (height, width))
        return {**dict(zip(("height", "width"), size, strict=True)), "interpolation": "AREA"}

    def _converted(self, form: str, **options: Any) -> np.ndarray:
        # One thread: handing a small picture to several takes longer than converting it.
        return self._converter.reformat(self._frame, format=form, threads=1, **options).to_ndarray()

    @property
    def _turn(self) -> tuple[int, int, int, int]:
        """The display matrix, signs alone: x' = a x + c y and y' = b x + d y."""
        matrix = self._frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return 1, 0, 0, 1
        a, b, _, c, d = np.sign(np.frombuffer(bytes(matrix), np.int32)[:5]).tolist()
        return a, b, c, d

    @property
    def _is_turned(self) -> bool:
        a, _, _, d = self._turn
        return a == 0 and d == 0

    def _upright(self, picture: np.ndarray) -> np.ndarray:
        """Applies the turn and the mirroring; angles other than quarter turns are ignored."""
        a, b, c, d = self._turn
        if self._is_turned:
            picture, a, d = picture.swapaxes(0, 1), c, b
        elif b != 0 or c != 0:
            return picture
        return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
