"""The frozen network that an adapter is trained beside."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints import (
    adapter_trees,
    adapters,
    embedded_models,
    keys,
    run_config,
    runs,
)
from ltx_jax.checkpoints.adapter_changes import Adapter, LowRank
from ltx_jax.checkpoints.checkpoint import NOUNS, Checkpoint, network_of
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.checkpoints.run_config import StoredBase
from ltx_jax.config import AdapterConfig, DType, RunConfig, TrainTransformer, TrainVAE
from ltx_jax.models import adapter
from ltx_jax.models.eight_bit import EightBit, quantized_blocks
from ltx_jax.models.vae import LatentStatistics
from ltx_jax.runtime import sharding
from ltx_jax.training.warm_start import matching_weights

AdapterRun = TrainTransformer | TrainVAE


class Base(NamedTuple):
    """The network of `run.init_from`.

    Attributes:
      stored: its path and hash.
      params: its parameters in the form that `adapter.base` names, sharded.
      statistics: of its latents, if it is a VAE; None if it does not normalise them.
      initial: the trained parameters that `adapter.init_from` gives; {} if it names none, or the
        run has begun.
    """

    stored: StoredBase
    params: Any
    statistics: LatentStatistics | None
    initial: dict[str, Any]


def load_base(cfg: AdapterRun, mesh: Mesh) -> Base:
    """Loads the network that an adapter is trained beside.

    Raises:
      ValueError: if it is no such network, or not the one that the run in `run.output` was started
        with; if the adapter to begin with does not fit it, or the run.
    """
    has_begun = runs.has_step(cfg.run.output)
    first = None if has_begun else _first_adapter(cfg)
    path, network = cfg.run.init_from, network_of(cfg.model)
    assert path is not None  # ensured by the config
    dtype, form = _forms(cfg.adapter)
    checkpoint = load_checkpoint(path, networks=(network,), mesh=mesh, dtype=dtype)
    if checkpoint.network(network) is None:
        raise ValueError(f"--run.init_from {path} holds no {NOUNS[network]}")
    vae = _absolute(cfg.vae) if isinstance(cfg, TrainTransformer) else ""
    stored = StoredBase(_absolute(path), checkpoint.base_hash(network), vae)
    if has_begun:
        run_config.check_same_base(cfg.run.output, stored)
    initial = {}
    if first is not None:
        adapters.check_base(first, checkpoint)
        initial = _initial(cfg, first)
    statistics, params = checkpoint.statistics, _matching(cfg, checkpoint)
    del checkpoint  # so that each matrix is freed when it has been quantised
    if form is not None:
        with sharding.use_mesh(mesh):
            params = quantized_blocks(params, form)
    return Base(stored, params, statistics, initial)


def _first_adapter(cfg: AdapterRun) -> Adapter | None:
    """The adapter of `adapter.init_from`, with the rank of this run; None if there is none.

    Raises:
      ValueError: if it cannot be read, or has another rank.
    """
    path = cfg.adapter.init_from
    if path is None:
        return None
    is_of_transformer = isinstance(cfg, TrainTransformer)
    networks = (cfg.model, None) if is_of_transformer else (None, cfg.model)
    first = adapters.read(path, *networks)
    for name, change in first.changes.items():
        if isinstance(change, LowRank) and len(change.down) != cfg.adapter.rank:
            raise ValueError(
                f"--adapter.init_from {path} changes {name} with rank {len(change.down)}, and "
                f"adapter.rank is {cfg.adapter.rank}: make them equal"
            )
    return first


def _initial(cfg: AdapterRun, first: Adapter) -> dict[str, Any]:
    tree = {"adapter": adapter_trees.tree_of(first, cfg.model, cfg.adapter.scale)}
    boxed = keys.adapter_boxed(cfg.model, cfg.adapter, cfg.execution.param_dtype)
    run = dataclasses.replace(
        _with_patterns(cfg.run, of_adapter=True), init_from=cfg.adapter.init_from, init_settings=()
    )
    return matching_weights(run, tree, {"adapter": sharding.unbox(boxed)}, ())


def _with_patterns(run: RunConfig, *, of_adapter: bool) -> RunConfig:
    """With those patterns alone that are for the adapter, or for the base."""
    own = {
        name: tuple(x for x in getattr(run, name) if x.startswith("adapter/") == of_adapter)
        for name in ("init_missing", "init_extra", "init_redraw")
    }
    return dataclasses.replace(run, **own)


def _matching(cfg: AdapterRun, checkpoint: Checkpoint) -> Any:
    network = network_of(cfg.model)
    params = getattr(checkpoint, f"{network}_params")
    configs = ((checkpoint.network(network), cfg.model),)
    shapes, run = sharding.unbox(_boxed(cfg)), _with_patterns(cfg.run, of_adapter=False)
    return matching_weights(run, {network: params}, {network: shapes}, configs)[network]


def _boxed(cfg: AdapterRun, dtype: DType = "float32") -> Any:
    if isinstance(cfg, TrainTransformer):
        return keys.transformer_boxed(cfg.model, dtype)
    return keys.vae_boxed(cfg.model, dtype)


def _absolute(path: str) -> str:
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else embedded_models.full_name(path)


def describe_base(cfg: AdapterRun, mesh: Mesh) -> Any:
    """Shapes and shardings of the parameters that `load_base` returns."""
    dtype, form = _forms(cfg.adapter)
    shapes = sharding.described(_boxed(cfg, dtype), mesh)
    return shapes if form is None else quantized_blocks(shapes, form)


def _forms(cfg: AdapterConfig) -> tuple[DType, EightBit | None]:
    """The dtype to load in, and the 8-bit form that is made from it."""
    form = cfg.base
    return ("bfloat16", form) if form == "int8" or form == "float8" else (form, None)


def init_adapter(cfg: AdapterRun, key: Array) -> dict[str, Any]:
    """Initialises the parameters of a stage that trains an adapter, with their logical axes."""
    boxed = keys.adaptable_boxed(cfg.model)
    return {"adapter": adapter.init(boxed, cfg.adapter, key, cfg.execution.param_dtype)}


def with_adapter(
    base: Any, params: Mapping[str, Any], cfg: AdapterConfig, key: Array | None = None
) -> dict[str, Any]:
    """The base with the adapter beside it.

    Args:
      base: parameters of the frozen network.
      params: trained parameters, of which one part is the adapter.
      cfg: its settings.
      key: random key of the dropout; None turns it off.
    """
    return adapter.attach(base, params["adapter"], scale=cfg.scale, dropout=cfg.dropout, key=key)


def split_key(cfg: AdapterConfig, key: Array) -> tuple[Array, Array | None]:
    """The key of the loss, and that of the adapter's dropout if there is one."""
    if not cfg.dropout:
        return key, None
    key, dropout_key = jax.random.split(key)
    return key, dropout_key
