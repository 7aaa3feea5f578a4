"""Training: two stages, and the code that every stage shares.

`train(cfg)` trains a configuration to its last step. Each kind of training is a `Stage`; a
`Trainer` lays a stage's state out on the mesh and compiles its step; `fit` is the training loop:

    from ltx_jax import config, training

    cfg = config.load("configs/shapes_tiny_vae.py")
    trainer = training.open_trainer(cfg)   # or Trainer(MyStage.open(cfg, mesh))
    state = training.fit(trainer)
"""

from typing import TYPE_CHECKING

from ltx_jax.runtime.lazy import lazy_attributes

if TYPE_CHECKING:
    from ltx_jax.training.loop import evaluate, fit, open_trainer, train
    from ltx_jax.training.optim import Optimizer
    from ltx_jax.training.stage import (
        BatchSource,
        InitialWeights,
        LoggedVideo,
        LossValue,
        Stage,
        Validation,
        stage_class,
    )
    from ltx_jax.training.state import TrainState
    from ltx_jax.training.step import Trainer

__all__ = [
    "BatchSource",
    "InitialWeights",
    "LoggedVideo",
    "LossValue",
    "Optimizer",
    "Stage",
    "TrainState",
    "Trainer",
    "Validation",
    "evaluate",
    "fit",
    "open_trainer",
    "stage_class",
    "train",
]

# Lazy, so that `training.flops`, for example, can be used without importing optimisers and
# checkpoints.
__getattr__ = lazy_attributes(
    __name__,
    {
        "BatchSource": "ltx_jax.training.stage",
        "InitialWeights": "ltx_jax.training.stage",
        "LoggedVideo": "ltx_jax.training.stage",
        "LossValue": "ltx_jax.training.stage",
        "Optimizer": "ltx_jax.training.optim",
        "Stage": "ltx_jax.training.stage",
        "TrainState": "ltx_jax.training.state",
        "Trainer": "ltx_jax.training.step",
        "Validation": "ltx_jax.training.stage",
        "evaluate": "ltx_jax.training.loop",
        "fit": "ltx_jax.training.loop",
        "open_trainer": "ltx_jax.training.loop",
        "stage_class": "ltx_jax.training.stage",
        "train": "ltx_jax.training.loop",
    },
)
