"""Scores that need a closer look, and captions: for clips that everything cheaper has let pass."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ltx_jax.config.preparation import PrepareConfig
from ltx_jax.prepare import cut
from ltx_jax.prepare.records import Clip, Reason
from ltx_jax.prepare.shelf import Shelf, key

_VERSION = 1


def judge(chunk: Sequence[Clip], cfg: PrepareConfig, shelf: Shelf) -> list[Clip]:
    """Clips with what is found out about those that are not dropped yet.

    Models are loaded when the first clip needs them, once in a process.
    """
    clips = list(chunk)

    def measure(stage: str, settings: Any, look: Callable[[np.ndarray], Any]) -> dict[int, Any]:
        """What `look` makes of the pictures of every clip that is left, by its place."""
        left = [i for i, clip in enumerate(clips) if not clip.reason]
        if not left:
            return {}
        parts = [clips[i].content for i in left]
        found = shelf.json(
            stage,
            key(stage, _VERSION, cfg.pictures, settings, parts),
            lambda: [look(cut.pictures(clips[i], cfg.pictures)) for i in left],
        )
        return dict(zip(left, found, strict=True))

    text, aesthetics, captions = cfg.text, cfg.aesthetics, cfg.captions
    if text.max_share is not None:
        module, _, function = text.detector.partition(":")
        detect = getattr(importlib.import_module(module), function)
        for i, share in measure("text", text.detector, lambda x: float(detect(x))).items():
            clips[i] = dataclasses.replace(clips[i], text=share)
            if share > text.max_share:
                detail = f"{share:.3g} of the picture, over {text.max_share:g}"
                clips[i] = clips[i].drop(Reason.TEXT, detail)
    if aesthetics.encoder:
        from ltx_jax.prepare.aesthetics import Scorer

        settings = [aesthetics.encoder, aesthetics.head]
        score = lambda x: Scorer.shared(*settings)(x)  # noqa: E731
        for i, found in measure("aesthetics", settings, score).items():
            clips[i] = dataclasses.replace(clips[i], aesthetics=found)
            if aesthetics.min_score is not None and found < aesthetics.min_score:
                detail = f"{found:.3g} under {aesthetics.min_score:g}"
                clips[i] = clips[i].drop(Reason.AESTHETICS, detail)
    if captions.model:
        from ltx_jax.prepare.captions import Captioner

        write = lambda x: Captioner.shared(captions)(x)  # noqa: E731
        for i, caption in measure("captions", dataclasses.asdict(captions), write).items():
            if caption:
                given = ((captions.model, caption), *clips[i].captions)
                clips[i] = dataclasses.replace(clips[i], captions=given)
            elif not clips[i].captions:
                clips[i] = clips[i].drop(Reason.CAPTION, "the model wrote nothing")
    return clips
