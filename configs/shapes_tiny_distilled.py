"""Smoke test of distillation on the procedural world: runs every code path, learns nothing.

    ltx-encode shapes_tiny_distilled --output data/shapes_tiny_paths --examples 32
    ltx-train shapes_tiny_distilled

Needs the run of configs/shapes_tiny_transformer.py.
"""

import dataclasses
from pathlib import Path

from ltx_jax.config import (
    DistillationConfig,
    RunConfig,
    TrainStudent,
    TrainTransformer,
    load,
)

_teacher = load(str(Path(__file__).with_name("shapes_tiny_transformer.py")))
assert isinstance(_teacher, TrainTransformer)

config = TrainStudent(
    model=_teacher.model,
    vae="runs/shapes_tiny_transformer",
    text_encoder=_teacher.text_encoder,
    max_caption_tokens=_teacher.max_caption_tokens,
    scheduler=_teacher.scheduler,
    flow=dataclasses.replace(_teacher.flow, caption_dropout=0.0),
    distillation=DistillationConfig(
        teacher="runs/shapes_tiny_transformer",
        paths="data/shapes_tiny_paths",
        times=(1.0, 0.5),
        teacher_steps=4,
        held_out=8,
    ),
    data=_teacher.data,
    optim=_teacher.optim,
    run=RunConfig(
        output="runs/shapes_tiny_distilled",
        init_from="runs/shapes_tiny_transformer",
        steps=20,
        log_every=5,
        save_every=10,
    ),
)
