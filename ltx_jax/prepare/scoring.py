"""The expensive scores and the captions, for clips that passed all cheaper filters."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.prepare import clip_video
from ltx_jax.prepare.records import ClipRecord, Reason
from ltx_jax.prepare.result_cache import ResultCache, cache_key, file_digest

_VERSION = 1


def check_models(cfg: PrepareConfig) -> None:
    """Checks that all detectors and models exist, before hours of work.

    Raises:
      ValueError: for the first one that does not exist.
    """
    if cfg.text.max_share is not None:
        _detector(cfg.text.detector)
    if not (cfg.aesthetics.encoder or cfg.captions.model):
        return  # without models, torch need not be installed

    from ltx_jax.prepare import aesthetics, pretrained

    if cfg.aesthetics.encoder:
        aesthetics.load_head(cfg.aesthetics.head)
        pretrained.check("image encoder", cfg.aesthetics.encoder)
    if cfg.captions.model:
        pretrained.check("captioner", cfg.captions.model)


def score_clips(
    chunk: Sequence[ClipRecord], cfg: PrepareConfig, cache: ResultCache
) -> list[ClipRecord]:
    """Scores and captions the clips that are not dropped yet, and drops those below a threshold.

    Models are loaded when the first clip needs them, once per process (`pretrained`).
    """
    clips = list(chunk)

    def measure(stage: str, settings: Any, load: Callable[[], Callable]) -> dict[int, Any]:
        """Applies a detector or model to the frames of each remaining clip.

        Returns its results by index into `clips`. `load` is called only if a result is not cached.
        """
        remaining = [i for i, clip in enumerate(clips) if not clip.reason]
        if not remaining:
            return {}
        contents = [clips[i].content for i in remaining]

        def compute() -> list[Any]:
            score = load()
            return [score(clip_video.sample_frames(clips[i], cfg.pictures)) for i in remaining]

        name = cache_key(stage, _VERSION, cfg.pictures, settings, contents)
        return dict(zip(remaining, cache.json(stage, name, compute), strict=True))

    text, aesthetics, captions = cfg.text, cfg.aesthetics, cfg.captions
    if text.max_share is not None:
        for i, fraction in measure("text", text.detector, lambda: _detector(text.detector)).items():
            clips[i] = dataclasses.replace(clips[i], text=fraction)
            if fraction > text.max_share:
                detail = f"{fraction:.3g} of the picture, over {text.max_share:g}"
                clips[i] = clips[i].drop(Reason.TEXT, detail)
    if aesthetics.encoder:
        from ltx_jax.prepare.aesthetics import Scorer

        settings = [aesthetics.encoder, file_digest(aesthetics.head)]
        load = functools.partial(Scorer, aesthetics.encoder, aesthetics.head)
        for i, score in measure("aesthetics", settings, load).items():
            clips[i] = dataclasses.replace(clips[i], aesthetics=score)
            if aesthetics.min_score is not None and score < aesthetics.min_score:
                detail = f"{score:.3g} under {aesthetics.min_score:g}"
                clips[i] = clips[i].drop(Reason.AESTHETICS, detail)
    if captions.model:
        from ltx_jax.prepare.captioner import Captioner

        settings = dataclasses.asdict(captions)
        for i, caption in measure("captions", settings, lambda: Captioner(captions)).items():
            if caption:
                all_captions = ((captions.model, caption), *clips[i].captions)
                clips[i] = dataclasses.replace(clips[i], captions=all_captions)
            elif not clips[i].captions:
                clips[i] = clips[i].drop(Reason.CAPTION, "the model wrote nothing")
    return clips


def _detector(name: str) -> Callable[[np.ndarray], float]:
    """Imports MODULE:FUNCTION, which returns the fraction of the given frames that text covers.

    Raises:
      ValueError: if it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        detect = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"--text.detector {name} is no MODULE:FUNCTION: {error}") from error
    return lambda pictures: float(detect(pictures))
