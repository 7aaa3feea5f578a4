"""What the released models saw in training, and a warning for requests outside of it.

Sources: the README of LTX-Video ("works best on resolutions under 720 x 1280 and number of frames
below 257", where 257 is its example of a number of frames), and its maintainers in the issues of
that repository: sizes of up to 12K latents (#132), no portrait formats in the first versions (#49,
where a portrait video fades to a pale colour), several frame rates (#149). The settings in that
repository have 24 to 30 frames per second; users report that 10 are unstable
(LTX-Video-Trainer#27).
"""

import logging

from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.config import SamplingConfig, TransformerConfig

# The default size of the official script, 121 frames of 1216 x 704, has 12.6K: "12K" is rounded.
_TOO_MANY_LATENTS = 13_000
_PIXELS = 720 * 1280
_FRAMES = 257
_FRAME_RATES = (20.0, 50.0)  # with a margin around the 24 to 30 of the released settings

_log = logging.getLogger(__name__)


def warn_of_range(options: SamplingConfig, transformer: TransformerConfig) -> None:
    """Logs one line if a released model is asked for what it did not see in training.

    A model of another shape was trained on something else: there is no warning for it.
    """
    if not options.range_warning or not _is_released(transformer):
        return
    reasons = _outside(options, is_first_version=not transformer.causal_temporal_positioning)
    if reasons:
        _log.warning(
            "the released models did not see such videos in training: %s (range_warning=False, "
            "--range_warning False: no warning)",
            "; ".join(reasons),
        )


def _is_released(transformer: TransformerConfig) -> bool:
    shape = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")
    released = [[x.config["transformer"][name] for name in shape] for x in RELEASED.values()]
    return [getattr(transformer, name) for name in shape] in released


def _outside(options: SamplingConfig, *, is_first_version: bool) -> list[str]:
    """What lies outside of the range, each with its number and the limit."""
    frames, height, width = options.num_frames, options.height, options.width
    latents = frames * height * width / (8 * 32 * 32)
    reasons = []
    if latents >= _TOO_MANY_LATENTS:
        reasons.append(f"{latents / 1000:.1f}K latents (trained on 12K at most)")
    if height * width > _PIXELS:
        reasons.append(f"{width} x {height} pixels (trained on 1280 x 720 at most)")
    if frames > _FRAMES:
        reasons.append(f"{frames} frames (trained on {_FRAMES} at most)")
    if frames > 1 and not _FRAME_RATES[0] <= options.frame_rate <= _FRAME_RATES[1]:
        reasons.append(f"{options.frame_rate:g} frames per second (trained mostly on 24 to 30)")
    if is_first_version and height > width:
        reasons.append(f"a portrait format, {width} x {height}, which may fade to one colour")
    return reasons
