"""Scores that need a closer look, and captions: for clips that everything cheaper has let pass."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.prepare import cut
from ltx_jax.prepare.records import Clip, Reason
from ltx_jax.prepare.shelf import Shelf, digest, key

_VERSION = 1


def check(cfg: PrepareConfig) -> None:
    """Refuses detectors and models that are not there, before hours of work.

    Raises:
      ValueError: naming the first of them.
    """
    if cfg.text.max_share is not None:
        _detector(cfg.text.detector)
    if not (cfg.aesthetics.encoder or cfg.captions.model):
        return  # torch need not be there

    from ltx_jax.prepare import aesthetics, pretrained

    if cfg.aesthetics.encoder:
        aesthetics.load_head(cfg.aesthetics.head)
        pretrained.check("image encoder", cfg.aesthetics.encoder)
    if cfg.captions.model:
        pretrained.check("captioner", cfg.captions.model)


def judge(chunk: Sequence[Clip], cfg: PrepareConfig, shelf: Shelf) -> list[Clip]:
    """Clips with what is found out about those that are not dropped yet.

    Models are loaded when the first clip needs them, once in a process (`pretrained`).
    """
    clips = list(chunk)

    def measure(stage: str, settings: Any, load: Callable[[], Callable]) -> dict[int, Any]:
        """What a detector or model makes of the pictures of each clip that is left, by its place.

        It is loaded, by `load`, if somebody has to look.
        """
        left = [i for i, clip in enumerate(clips) if not clip.reason]
        if not left:
            return {}
        parts = [clips[i].content for i in left]

        def look() -> list[Any]:
            judge_one = load()
            return [judge_one(cut.pictures(clips[i], cfg.pictures)) for i in left]

        found = shelf.json(stage, key(stage, _VERSION, cfg.pictures, settings, parts), look)
        return dict(zip(left, found, strict=True))

    text, aesthetics, captions = cfg.text, cfg.aesthetics, cfg.captions
    if text.max_share is not None:
        for i, share in measure("text", text.detector, lambda: _detector(text.detector)).items():
            clips[i] = dataclasses.replace(clips[i], text=share)
            if share > text.max_share:
                detail = f"{share:.3g} of the picture, over {text.max_share:g}"
                clips[i] = clips[i].drop(Reason.TEXT, detail)
    if aesthetics.encoder:
        from ltx_jax.prepare.aesthetics import Scorer

        settings = [aesthetics.encoder, digest(aesthetics.head)]
        load = functools.partial(Scorer, aesthetics.encoder, aesthetics.head)
        for i, found in measure("aesthetics", settings, load).items():
            clips[i] = dataclasses.replace(clips[i], aesthetics=found)
            if aesthetics.min_score is not None and found < aesthetics.min_score:
                detail = f"{found:.3g} under {aesthetics.min_score:g}"
                clips[i] = clips[i].drop(Reason.AESTHETICS, detail)
    if captions.model:
        from ltx_jax.prepare.captions import Captioner

        settings = dataclasses.asdict(captions)
        for i, caption in measure("captions", settings, lambda: Captioner(captions)).items():
            if caption:
                given = ((captions.model, caption), *clips[i].captions)
                clips[i] = dataclasses.replace(clips[i], captions=given)
            elif not clips[i].captions:
                clips[i] = clips[i].drop(Reason.CAPTION, "the model wrote nothing")
    return clips


def _detector(name: str) -> Callable[[np.ndarray], float]:
    """The function MODULE:FUNCTION, which gives the share of text of some pictures.

    Raises:
      ValueError: if there is none.
    """
    module, _, function = name.partition(":")
    try:
        detect = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"--text.detector {name} is no MODULE:FUNCTION: {error}") from error
    return lambda pictures: float(detect(pictures))
