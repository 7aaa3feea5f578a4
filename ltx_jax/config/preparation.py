"""Settings of data preparation: what is kept of raw videos, and how it is stored."""

import dataclasses

from ltx_jax.config.networks import require


@dataclasses.dataclass(frozen=True)
class ShotsConfig:
    """Shots, and the clips that are cut from them."""

    detect: bool = True  # off: a file is one shot
    ratio: float = 3.0  # a cut changes the picture so many times as much as frames beside it
    min_change: float = 8.0  # and by so much: mean of hue, saturation and luma, of 255
    min_seconds: float = 1.0  # of a clip; what is shorter is dropped
    max_seconds: float = 10.0  # a longer shot gives several clips

    def __post_init__(self):
        require(self.ratio > 1, f"ratio must be above 1, got {self.ratio}")
        require(
            0 < self.min_seconds <= self.max_seconds / 2,
            "min_seconds must be positive and at most half of max_seconds, got "
            f"{self.min_seconds} and {self.max_seconds}",
        )


@dataclasses.dataclass(frozen=True)
class DuplicatesConfig:
    """Near-duplicates: of each group the largest picture is kept, the longest of those."""

    drop: bool = True
    max_distance: float = 10.0  # bits of 64 that differ, on average over the clip


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Lettering: subtitles, logos, watermarks."""

    max_share: float | None = 0.02  # of the picture; None: clips are not looked at
    # MODULE:FUNCTION that takes frames (t, h, w, 3) and gives the share, in place of ours.
    detector: str = "ltx_jax.data.filters.lettering:share"


@dataclasses.dataclass(frozen=True)
class AestheticsConfig:
    """A ranking head on a frozen image encoder."""

    encoder: str = ""  # a CLIP or SigLIP of transformers, by name or folder; empty: no scores
    head: str = ""  # a file of `aesthetics-train`, or one of LAION's
    min_score: float | None = None  # None: scored, and none dropped

    def __post_init__(self):
        require(bool(self.encoder) == bool(self.head), "aesthetics need both an encoder and a head")


@dataclasses.dataclass(frozen=True)
class CaptionsConfig:
    """Captions by a model, beside those that lie with the files (`clip.mp4`, `clip.txt`)."""

    model: str = ""  # an image-text-to-text model of transformers; empty: none is written
    prompt: str = "Describe this video in one detailed paragraph."
    max_tokens: int = 200  # that it writes

    def __post_init__(self):
        require(self.max_tokens > 0, f"max_tokens must be positive, got {self.max_tokens}")


@dataclasses.dataclass(frozen=True)
class StoreConfig:
    """The clips as they are written: H.264 in MP4."""

    crf: int = 18  # 0 is lossless but for 4:2:0; 18 looks like the original
    max_side: int = 1920  # a larger picture is scaled down, in pixels
    min_side: int = 128  # a smaller one is dropped
    # Steady rates are kept if they lie between these; others are resampled by time, to the average
    # of an unsteady file, or to the highest one.
    min_frame_rate: float = 8.0  # a lower one is dropped
    max_frame_rate: float = 60.0
    shard_megabytes: int = 256  # of input to a file of the set

    def __post_init__(self):
        require(0 <= self.crf <= 51, f"crf must lie between 0 and 51, got {self.crf}")
        require(
            0 < self.min_side <= self.max_side,
            f"min_side and max_side must be positive and in order, got {self.min_side} and "
            f"{self.max_side}",
        )
        require(
            0 < self.min_frame_rate <= self.max_frame_rate,
            "min_frame_rate and max_frame_rate must be positive and in order, got "
            f"{self.min_frame_rate} and {self.max_frame_rate}",
        )
        require(
            self.shard_megabytes > 0,
            f"shard_megabytes must be positive, got {self.shard_megabytes}",
        )


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Everything from raw videos to a data set: `python -m ltx_jax.prepare`."""

    shots: ShotsConfig = ShotsConfig()
    crop_bars: bool = True  # black bars, off all clips
    # Motion that a clip must have, in percent of the picture's diagonal per second; None: any.
    min_motion: float | None = 0.45
    duplicates: DuplicatesConfig = DuplicatesConfig()
    # Of a clip, evenly spaced: what detectors of text, aesthetics and captions look at.
    pictures: int = 4
    text: TextConfig = TextConfig()
    aesthetics: AestheticsConfig = AestheticsConfig()
    captions: CaptionsConfig = CaptionsConfig()
    store: StoreConfig = StoreConfig()
    # A config of a transformer's training, configs/NAME.py: the latents and embeddings that it
    # trains on are made of the finished set, in OUTPUT/latents. Empty: none are.
    latents: str = ""

    def __post_init__(self):
        require(self.pictures > 0, f"pictures must be positive, got {self.pictures}")
