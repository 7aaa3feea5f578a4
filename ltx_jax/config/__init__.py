"""Every setting of the project: frozen dataclasses, the whole schema of `configs/`.

Imports nothing of ours but its own parts, so that `--help` is instant.
"""

import runpy
from collections.abc import Sequence
from typing import Any

from ltx_jax.config.networks import (
    AttentionForm,
    BlockConfig,
    DiscriminatorConfig,
    DType,
    MeshConfig,
    Remat,
    T5Config,
    TransformerConfig,
    UpsamplerConfig,
    VAEConfig,
)
from ltx_jax.config.sampling import (
    PerStep,
    SampleConfig,
    SamplingConfig,
    SchedulerConfig,
    SkipBlocks,
    STGMode,
)
from ltx_jax.config.training import (
    BucketConfig,
    ConditionPattern,
    DataConfig,
    DistributedConfig,
    FlowConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainTransformer,
    TrainVAE,
    VAELossConfig,
)

__all__ = [
    "AttentionForm",
    "BlockConfig",
    "BucketConfig",
    "ConditionPattern",
    "DType",
    "DataConfig",
    "DiscriminatorConfig",
    "DistributedConfig",
    "FlowConfig",
    "MeshConfig",
    "OptimConfig",
    "PerStep",
    "Remat",
    "RunConfig",
    "STGMode",
    "SampleConfig",
    "SamplingConfig",
    "SchedulerConfig",
    "SkipBlocks",
    "SourceConfig",
    "T5Config",
    "TrainTransformer",
    "TrainVAE",
    "TransformerConfig",
    "UpsamplerConfig",
    "VAEConfig",
    "VAELossConfig",
    "load",
]


def load(path: str, overrides: Sequence[str] = ()) -> Any:
    """Reads `config` from a Python file (or `file.py:name`), then applies `--group.field value`.

    Raises:
      ValueError: if the file does not define the name.
    """
    import tyro  # the command line alone needs it

    file, _, name = path.partition(":")
    namespace = runpy.run_path(file)
    name = name or "config"
    if name not in namespace:
        raise ValueError(f"{file} defines no {name!r}")
    default = namespace[name]
    return tyro.cli(type(default), default=default, args=list(overrides))
