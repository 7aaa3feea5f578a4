"""Opens clips for decoding: selects the video stream and yields its frames with their times.

PyAV reads videos, Pillow reads animations.
"""

import abc
import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import av.container
import av.error
import av.stream
import numpy as np

from ltx_jax.data import inputs, pictures
from ltx_jax.data.frames import Converter, DecodedFrame, FrameGeometry

TICK = 1e-3  # seconds; Matroska rounds time stamps to this
# FFmpeg's names of the containers that are read. Playlists and lists (HLS, DASH, concat) are not
# among them: they name further files.
_CONTAINERS = (
    *("mov", "mp4", "matroska", "webm", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv", "ogg"),
    *("h264", "hevc", "av1", "obu", "vvc", "ivf", "m4v", "mjpeg", "nut", "mxf", "dv", "gif", "rm"),
    *("yuv4mpegpipe", "wtv", "vc1", "h263"),
)
_OPEN_OPTIONS = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones drop the alpha plane
_NO_CLIP = (
    av.stream.Disposition.attached_pic
    | av.stream.Disposition.timed_thumbnails
    | av.stream.Disposition.dependent
)


class Facts(NamedTuple):
    """Properties of a medium that are known without decoding it."""

    frames: int  # stored; 1 for a picture
    height: int  # as shown, in pixels
    width: int
    seconds: float  # from the first frame to the end of the last; 0 for a picture
    frame_rate: float  # on average; 0 for a picture
    steady: bool  # all frames are shown for equally long


class Clip(abc.ABC):
    """An open clip.

    Attributes:
      name: name of the file, for messages.
      rate: frames per second, on average.
    """

    name: str
    rate: Fraction

    @abc.abstractmethod
    def frames(self, start: float | int) -> Generator[DecodedFrame, None, None]:
        """Yields every frame that is on the screen at or after `start`, in seconds.

        Raises:
          ValueError: if the file is damaged.
        """

    @abc.abstractmethod
    def facts(self) -> tuple[Facts, DecodedFrame]:
        """Reads the whole file; returns its properties and its first frame.

        Raises:
          ValueError: if it holds no frame, or is damaged outside of its frames.
        """


@contextlib.contextmanager
def open_clip(path: inputs.File) -> Iterator[Clip]:
    """Opens a video or an animation.

    Raises:
      ValueError: if there is no such file, or it is empty, no video, a still picture, sound alone,
        too large or damaged.
    """
    kind = pictures.kind(path)
    if kind == "picture":
        raise ValueError(f"{path} is a still image; a clip is expected")
    if kind == "animation":
        yield _Animation(path)
        return
    try:
        with _open_container(path) as container:
            yield _Video(path, container)
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"{path} is not a video, or is truncated or damaged (FFmpeg: {reason})"
        ) from error


def _open_container(path: inputs.File) -> av.container.InputContainer:
    # The prefix keeps FFmpeg from reading a file name such as `concat:a.mp4` as a protocol.
    file = inputs.handle(path) if isinstance(path, inputs.Stored) else f"file:{path}"
    try:
        return av.open(file, "r", options=_OPEN_OPTIONS)
    except av.error.ArgumentError as error:
        raise ValueError(
            f"{path} is not a video in a container that is read here (MP4, MOV, MKV, WebM, AVI, "
            "MPEG, TS, WMV, FLV, OGV, ...)"
        ) from error


def _main_stream(path: inputs.File, container: av.container.InputContainer) -> av.VideoStream:
    """The largest video stream, or the default one among equals; no covers, previews or tiles."""
    videos = container.streams.video
    if not videos:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise ValueError(f"{path} has no video stream, only {' and '.join(kinds)}")
    clips = [stream for stream in videos if not stream.disposition & _NO_CLIP]
    if not clips:
        raise ValueError(f"{path} holds a cover or the tiles of a picture, and no video")
    decodable = [stream for stream in clips if stream.codec_context is not None]
    if not decodable:
        raise ValueError(f"{path} is encoded in a way that this build of FFmpeg cannot decode")

    def rank(stream: av.VideoStream) -> tuple[int, bool, bool]:
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        return stream.width * stream.height, stream.frames != 1, is_default

    return max(decodable, key=rank)


class _Video(Clip):
    """A video in a container that FFmpeg reads."""

    def __init__(self, path: inputs.File, container: av.container.InputContainer):
        self.name = str(path)
        self._container = container
        self._stream = stream = _main_stream(path, container)
        pictures.check_size(path, stream.width * stream.height)
        # Not FRAME: a thread could yield a frame before another thread marks it as damaged.
        stream.thread_type = "SLICE"
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self._geometry: FrameGeometry | None = None

    def frames(self, start: float | int) -> Generator[DecodedFrame, None, None]:
        container, stream = self._container, self._stream
        origin = float((stream.start_time or 0) * (stream.time_base or 0))
        # Raw streams, as some cameras write them, have no time stamps to seek to.
        if start > 0 and stream.time_base and stream.start_time is not None:
            container.seek(round((start + origin) / stream.time_base), stream=stream)
            first = next(container.decode(stream), None)
            # Seeking may land too late in a file without an index: then decode from its beginning.
            late = first is None or first.pts is None or first.time - origin > start
            container.seek(0 if late else round((start + origin) / stream.time_base), stream=stream)
        converter, decode, rate = Converter(), self._decoder(), float(self.rate)
        previous: tuple[float, av.VideoFrame] | None = None
        index = 0
        for packet in container.demux(stream):
            self._check_packet(packet, index)
            for frame in decode(packet):
                begin = index / rate if frame.pts is None else float(frame.time) - origin
                index += 1
                if previous is not None and begin > start + TICK:
                    yield self._decoded_frame(previous[0], begin, previous[1], converter)
                previous = begin, frame
        if previous is not None:
            begin, frame = previous
            seconds = float((frame.duration or 0) * (frame.time_base or 0)) or 1 / rate
            if begin + seconds > start + TICK:
                yield self._decoded_frame(begin, begin + seconds, frame, converter)

    def facts(self) -> tuple[Facts, DecodedFrame]:
        rate, tick = float(self.rate), float(self._stream.time_base or 0)
        first: DecodedFrame | None = None
        begins: list[float] = []
        last = 0.0
        decode = self._decoder()
        for packet in self._container.demux(self._stream):
            self._check_packet(packet, len(begins))
            if first is None:
                for frame in decode(packet)[:1]:
                    first = self._decoded_frame(0.0, 0.0, frame, Converter())
            # Packets before the beginning of a trimmed clip are decoded but not shown.
            if packet.size and not packet.is_discard:
                begin = len(begins) / rate if packet.pts is None else packet.pts * tick
                begins.append(begin)
                last = max(last, begin + ((packet.duration or 0) * tick or 1 / rate))
        if first is None:
            raise ValueError(f"{self.name} has no frame that can be decoded")
        gaps = np.diff(sorted(begins))
        steady = bool((np.abs(gaps - 1 / rate) <= 2 * max(tick, TICK)).all())
        return Facts(len(begins), *first.size, last - min(begins), rate, steady), first

    def _decoder(self) -> Callable[[av.Packet], Sequence[av.VideoFrame]]:
        """Packet -> frames, with their alpha plane where the file has one."""
        stream = self._stream
        metadata = {name.lower(): value for name, value in stream.metadata.items()}
        name = _ALPHA_DECODERS.get(stream.codec_context.name)
        if name is None or metadata.get("alpha_mode") != "1":
            return lambda packet: packet.decode()
        context = av.CodecContext.create(name, "r")
        assert isinstance(context, av.VideoCodecContext)
        context.extradata = stream.codec_context.extradata
        return lambda packet: context.decode(packet if packet.size else None)

    def _check_packet(self, packet: av.Packet, count: int) -> None:
        if packet.is_corrupt:
            raise ValueError(f"{self.name} is truncated or damaged after {count} frames")

    def _decoded_frame(
        self, begin: float, end: float, frame: av.VideoFrame, converter: Converter
    ) -> DecodedFrame:
        if self._geometry is None:
            context, stream = self._stream.codec_context, self._stream
            aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio or 1
            self._geometry = FrameGeometry.of(frame, float(aspect))
            pictures.check_size(self.name, round(frame.width * frame.height * float(aspect)))
        return DecodedFrame(begin, end, self._geometry, frame, converter)


class _Animation(Clip):
    """A GIF, PNG, WebP or AVIF of several pictures."""

    def __init__(self, path: inputs.File):
        self.name = str(path)
        self._path = path
        self._seconds = [frame.seconds for frame in pictures.read_animation(path)]
        self.rate = Fraction(len(self._seconds) / math.fsum(self._seconds)).limit_denominator(1000)

    def frames(self, start: float | int) -> Generator[DecodedFrame, None, None]:
        ends = list(itertools.accumulate(self._seconds))
        begins = [0.0, *ends]
        converter = Converter()
        with contextlib.closing(pictures.read_animation(self._path)) as animation:
            for begin, end, (picture, _) in zip(begins, ends, animation, strict=False):
                if end > start + TICK:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    yield DecodedFrame(begin, end, FrameGeometry(), frame, converter)

    def facts(self) -> tuple[Facts, DecodedFrame]:
        with contextlib.closing(self.frames(0)) as frames:
            first = next(frames)
        gaps = np.abs(np.array(self._seconds[:-1]) - float(1 / self.rate))
        # GIFs count in 1/100 s and alternate between two delays to be right on average.
        steady = bool((gaps <= 0.02).all())
        seconds = math.fsum(self._seconds)
        count = len(self._seconds)
        return Facts(count, *first.size, seconds, float(self.rate), steady), first
