"""Settings of data preparation: which parts of raw videos are kept, and how they are stored."""

from ltx_jax.config.settings import require, settings


@settings
class ShotsConfig:
    """Detection of shots, and the length of the clips cut from them."""

    detect: bool = True  # False: every file is one shot
    ratio: float = 3.0  # least change at a cut, relative to that between neighbouring frames
    # Least change at a cut: the mean over hue, saturation and luma, each from 0 to 255.
    min_change: float = 8.0
    min_seconds: float = 1.0  # shorter clips are dropped
    max_seconds: float = 10.0  # longer shots are cut into several clips

    def __post_init__(self):
        require(self.ratio > 1, f"ratio must be above 1, got {self.ratio}")
        require(
            0 < self.min_seconds <= self.max_seconds / 2,
            "min_seconds must be positive and at most half of max_seconds, got "
            f"{self.min_seconds} and {self.max_seconds}",
        )


@settings
class DuplicatesConfig:
    """Near-duplicates: the clip with the largest picture is kept; among equals, the longest."""

    drop: bool = True
    max_distance: float = 10.0  # largest mean number of different bits between hashes of 64 bits


@settings
class TextConfig:
    """Text in the picture: subtitles, logos, watermarks."""

    max_share: float | None = 0.02  # largest fraction of the picture; None: text is not detected
    # MODULE:FUNCTION that maps frames (t, h, w, 3) to the fraction that text covers.
    detector: str = "ltx_jax.data.filters.lettering:share"


@settings
class AestheticsConfig:
    """Aesthetic scores by a ranking head on a frozen image encoder."""

    encoder: str = ""  # name or folder of a CLIP or SigLIP model of transformers; empty: no scores
    head: str = ""  # a file from `aesthetics-train`, or one of LAION's heads
    min_score: float | None = None  # None: clips are scored, but none is dropped

    def __post_init__(self):
        require(bool(self.encoder) == bool(self.head), "aesthetics need both an encoder and a head")


@settings
class CaptionsConfig:
    """Captions by a model, in addition to those beside the files (`clip.txt` for `clip.mp4`)."""

    model: str = ""  # name or folder of an image-text-to-text model of transformers; empty: none
    prompt: str = "Describe this video in one detailed paragraph."
    max_tokens: int = 200  # largest number of tokens of a caption

    def __post_init__(self):
        require(self.max_tokens > 0, f"max_tokens must be positive, got {self.max_tokens}")


@settings
class StoreConfig:
    """How clips are stored: H.264 in MP4."""

    # H.264 quality: 0 is lossless except for 4:2:0 chroma; 18 looks like the original.
    crf: int = 18
    max_side: int = 1920  # pixels; larger pictures are scaled down
    min_side: int = 128  # pixels; smaller pictures are dropped
    # Files with a constant frame rate in this range keep it. Variable rates are resampled to their
    # average, and rates above max_frame_rate to a half, a third, ... of themselves.
    min_frame_rate: float = 8.0  # files with a lower rate are dropped
    max_frame_rate: float = 60.0
    shard_megabytes: int = 256  # megabytes of input per file of the data set

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


@settings
class PrepareConfig:
    """All settings of data preparation: `ltx-prepare`."""

    # Column of a table (or key of JSON) with the paths of clips; None: the usual names.
    media_column: str | None = None
    # Column of a table (or key of JSON) with the captions; None: the usual names.
    caption_column: str | None = None
    shots: ShotsConfig = ShotsConfig()
    crop_bars: bool = True  # crop black bars
    # Least motion of a clip, in percent of the picture's diagonal per second; None: clips without
    # motion are kept.
    min_motion: float | None = 0.45
    duplicates: DuplicatesConfig = DuplicatesConfig()
    # Number of frames per clip that the text detector and the models see, evenly spaced.
    pictures: int = 4
    text: TextConfig = TextConfig()
    aesthetics: AestheticsConfig = AestheticsConfig()
    captions: CaptionsConfig = CaptionsConfig()
    store: StoreConfig = StoreConfig()
    # Name of a config of transformer training (configs/NAME.py). The finished data set is encoded
    # to the latents and embeddings that this config trains on, in OUTPUT/latents. Empty: it is not
    # encoded.
    latents: str = ""

    def __post_init__(self):
        require(self.pictures > 0, f"pictures must be positive, got {self.pictures}")
