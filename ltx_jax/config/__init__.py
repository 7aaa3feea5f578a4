"""Every setting of the project: frozen dataclasses, the whole schema of `configs/`.

Imports nothing of ours but its own parts, so that `--help` is instant.
"""

import dataclasses
import re
import runpy
from collections.abc import Sequence
from typing import Any

from ltx_jax.config.from_json import build, nearest
from ltx_jax.config.networks import (
    AttentionForm,
    BlockConfig,
    DiscriminatorConfig,
    DType,
    ExecutionConfig,
    Linears,
    MeshConfig,
    Remat,
    T5Config,
    TransformerConfig,
    UpsamplerConfig,
    VAEConfig,
)
from ltx_jax.config.preparation import (
    AestheticsConfig,
    CaptionsConfig,
    DuplicatesConfig,
    PrepareConfig,
    ShotsConfig,
    StoreConfig,
    TextConfig,
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
    "AestheticsConfig",
    "AttentionForm",
    "BlockConfig",
    "BucketConfig",
    "CaptionsConfig",
    "ConditionPattern",
    "DType",
    "DataConfig",
    "DiscriminatorConfig",
    "DistributedConfig",
    "DuplicatesConfig",
    "ExecutionConfig",
    "FlowConfig",
    "Linears",
    "MeshConfig",
    "OptimConfig",
    "PerStep",
    "PrepareConfig",
    "Remat",
    "RunConfig",
    "STGMode",
    "SampleConfig",
    "SamplingConfig",
    "SchedulerConfig",
    "ShotsConfig",
    "SkipBlocks",
    "SourceConfig",
    "StoreConfig",
    "T5Config",
    "TextConfig",
    "TrainTransformer",
    "TrainVAE",
    "TransformerConfig",
    "UpsamplerConfig",
    "VAEConfig",
    "VAELossConfig",
    "build",
    "load",
    "nearest",
]


def load(path: str, overrides: Sequence[str] = ()) -> Any:
    """Reads `config` from a Python file (or `file.py:name`), then applies `--group.field value`.

    Raises:
      ValueError: if the file does not define the name or sets a field that does not exist, or if
        there are overrides and no tyro.
    """
    file, _, name = path.partition(":")
    try:
        namespace = runpy.run_path(file)
    except TypeError as error:
        if ".__init__()" not in str(error):
            raise
        raise ValueError(f"{file}: {_explain(error)}") from error
    name = name or "config"
    if name not in namespace:
        raise ValueError(f"{file} defines no {name!r}")
    default = namespace[name]
    if not overrides:
        return default
    try:
        import tyro  # the command line alone needs it
    except ImportError as error:
        raise ValueError(
            f"settings on the command line ({overrides[0]}) need tyro, which is not installed: "
            "pip install tyro, or set them in a config file"
        ) from error
    return tyro.cli(type(default), default=default, args=list(overrides))


def _explain(error: TypeError) -> str:
    """What a constructor complains about, with the field that was meant."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = globals().get(match[1]) if match else None
    if match is None or kind is None:
        return str(error)
    names = [field.name for field in dataclasses.fields(kind)]
    return f"{match[1]} has no field {match[2]!r}{nearest(match[2], names)}"
