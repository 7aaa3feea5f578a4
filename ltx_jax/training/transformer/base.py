"""The frozen transformer that an adapter is trained beside."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ltx_jax.checkpoints import keys, run_config, runs
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.checkpoints.run_config import StoredBase
from ltx_jax.config import DType, TrainTransformer
from ltx_jax.models.eight_bit import EightBit, quantized_blocks
from ltx_jax.runtime import sharding
from ltx_jax.training.warm_start import matching_weights


def load_base(cfg: TrainTransformer, mesh: Mesh) -> tuple[StoredBase, Any]:
    """Loads the transformer of `run.init_from` in the form that `adapter.base` names, sharded.

    Returns:
      Path and hash of the transformer, and its parameters.

    Raises:
      ValueError: if it is no such transformer, or not the one that the run in `run.output` was
        started with.
    """
    path = cfg.run.init_from
    assert path is not None  # ensured by the config
    dtype, form = _forms(cfg)
    checkpoint = load_checkpoint(path, networks=("transformer",), mesh=mesh, dtype=dtype)
    if checkpoint.transformer is None:
        raise ValueError(f"--run.init_from {path} holds no transformer")
    stored = StoredBase(_absolute(path), checkpoint.base_hash, _absolute(cfg.vae))
    if runs.has_step(cfg.run.output):
        run_config.check_same_base(cfg.run.output, stored)
    params = matching_weights(
        cfg.run,
        {"transformer": checkpoint.transformer_params},
        {"transformer": sharding.unbox(keys.transformer_boxed(cfg.model))},
        ((checkpoint.transformer, cfg.model),),
    )["transformer"]
    del checkpoint  # so that each matrix is freed when it has been quantised
    if form is not None:
        with sharding.use_mesh(mesh):
            params = quantized_blocks(params, form)
    return stored, params


def _absolute(path: str) -> str:
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


def describe_base(cfg: TrainTransformer, mesh: Mesh) -> Any:
    """Shapes and shardings of the parameters that `load_base` returns."""
    dtype, form = _forms(cfg)
    boxed = keys.transformer_boxed(cfg.model, dtype)
    shapes = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        sharding.unbox(boxed),
        sharding.shardings(boxed, mesh),
    )
    return shapes if form is None else quantized_blocks(shapes, form)


def _forms(cfg: TrainTransformer) -> tuple[DType, EightBit | None]:
    """The dtype to load in, and the 8-bit form that is made from it."""
    form = cfg.adapter.base
    return ("bfloat16", form) if form == "int8" or form == "float8" else (form, None)
