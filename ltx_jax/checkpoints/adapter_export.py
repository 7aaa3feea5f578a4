"""What `ltx-export` does with adapters: merges them into checkpoints, and writes them as files."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltx_jax.checkpoints import (
    adapter_extraction,
    adapter_writing,
    adapters,
    releases,
    run_config,
)
from ltx_jax.checkpoints.adapter_changes import LowRank
from ltx_jax.checkpoints.adapter_metadata import Origin
from ltx_jax.checkpoints.checkpoint import NETWORKS, Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import AdapterNaming, DType
from ltx_jax.runtime import files


def merged(loaded: Checkpoint, loras: Sequence[tuple[str, float]]) -> Checkpoint:
    """A checkpoint with adapters merged in; each tensor is computed when it is written.

    Args:
      loaded: the checkpoint.
      loras: paths and strengths of the adapters.

    Raises:
      ValueError: if the network that an adapter changes is missing, or does not fit it.
    """
    read = [
        (adapters.read(path, loaded.transformer, loaded.vae), strength) for path, strength in loras
    ]
    changes: dict[str, Any] = {}
    for network in NETWORKS:
        own = [(adapter, strength) for adapter, strength in read if adapter.network == network]
        for adapter, _ in own:
            adapters.check_base(adapter, loaded)
        if own:
            name = f"{network}_params"
            params, cfg = getattr(loaded, name), loaded.network(network)
            changes[name] = adapters.merge_lazily(params, cfg, own)
    names = ", ".join(f"{adapter.path.name}:{strength:g}" for adapter, strength in read)
    metadata = {**loaded.metadata, "modelspec.merged_from": names}
    return dataclasses.replace(loaded, **changes, metadata=metadata)


def write_trained(
    run: str,
    out: Path,
    *,
    naming: AdapterNaming = "comfy",
    dtype: DType | None = None,
    trigger: str = "",
) -> None:
    """Writes the EMA of the adapter that a run trained.

    Args:
      run: a run of ltx-train that trains an adapter, or a step of one.
      out: a safetensors file that does not exist.
      naming: whose names: those that ComfyUI or diffusers reads.
      dtype: of the matrices; None keeps that of the run.
      trigger: words that a prompt needs for the adapter to act, for its metadata.

    Raises:
      ValueError: if the run trains no adapter, or the place cannot be written.
    """
    _check_adapter_path(out)
    if not (run_config.is_run(run) and run_config.trains_adapter(run_config.read_config(run))):
        raise ValueError(
            f"{run} is no run that trains an adapter: only adapters are single files, name a folder"
        )
    from ltx_jax.checkpoints import runs  # imports Orbax, which takes a second

    adapter = adapters.of_run(runs.load_adapter(run), run, run_config.read_config(run).model)
    facts = {**adapter.metadata, **Origin(trigger).to_metadata(adapter.network)}
    written: dict[str, Any] = dict(network=adapter.network, naming=naming, dtype=dtype)
    adapter_writing.write(out, adapter.changes, metadata=facts, **written)


def extract(
    tuned: str,
    out: Path,
    *,
    base: str,
    rank: int | None = None,
    energy: float | None = None,
    naming: AdapterNaming = "comfy",
    dtype: DType | None = None,
    trigger: str = "",
) -> None:
    """Writes the difference of two checkpoints as an adapter, and prints the error of each tensor.

    Args:
      tuned: the checkpoint that the adapter should make of the base.
      out: a safetensors file that does not exist.
      base: the checkpoint that the adapter will change.
      rank: of the change of every matrix.
      energy: instead of a rank, the part of each difference's sum of squares that is kept.
      naming: whose names: those that ComfyUI or diffusers reads.
      dtype: of the matrices; None keeps that of the tuned checkpoint.
      trigger: words that a prompt needs for the adapter to act, for its metadata.

    Raises:
      ValueError: if the checkpoints do not fit each other, or the place cannot be written.
    """
    _check_adapter_path(out)
    models = [
        load_checkpoint(one, networks=("transformer",), in_memory=False) for one in (base, tuned)
    ]
    changes, size, error = {}, 0.0, 0.0
    for one in adapter_extraction.extract(*models, rank=rank, energy=energy, dtype=dtype):
        adapter_writing.check(one.name, one.change, naming)
        changes[one.name] = one.change
        size, error = math.hypot(size, one.size), math.hypot(error, one.error)
        how = f"rank {len(one.change.down)}" if isinstance(one.change, LowRank) else "whole"
        print(f"{one.name}: {how}, error {one.error / one.size:.2%}")
    print(f"{len(changes)} tensors differ; error {error / size:.2%} of the whole difference")
    origin = Origin(trigger, releases.name_of(base), models[0].base_hash("transformer"), rank=rank)
    facts = {**origin.to_metadata(), "ltx_jax.extracted_from": releases.name_of(tuned)}
    adapter_writing.write(out, changes, naming=naming, metadata=facts)


def _check_adapter_path(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"an adapter is one file: name it {out}.safetensors")
    if out.exists():
        raise ValueError(f"{out} exists: choose another name")
    files.check_writable(out)
