"""What `ltx-export` does with adapters: merges them into checkpoints, and writes them as files."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from ltx_jax.checkpoints import (
    adapter_extraction,
    adapter_writing,
    adapters,
    releases,
    run_config,
)
from ltx_jax.checkpoints.adapter_changes import LowRank
from ltx_jax.checkpoints.adapter_metadata import Origin
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import AdapterNaming, DType
from ltx_jax.runtime import files


def merged(source: str, loaded: Checkpoint, loras: Sequence[tuple[str, float]]) -> Checkpoint:
    """A checkpoint with adapters merged in; each tensor is computed when it is written.

    Args:
      source: what the checkpoint was loaded from, for messages.
      loaded: the checkpoint.
      loras: paths and strengths of the adapters.

    Raises:
      ValueError: if there is no transformer, or an adapter does not fit it.
    """
    cfg = loaded.transformer
    if cfg is None:
        raise ValueError(f"{source} holds no transformer that adapters could change")
    read = [(adapters.read(path, cfg), strength) for path, strength in loras]
    for adapter, _ in read:
        adapters.warn_of_base(adapter, loaded)
    names = ", ".join(f"{adapter.path.name}:{strength:g}" for adapter, strength in read)
    return dataclasses.replace(
        loaded,
        transformer_params=adapters.merge_lazily(loaded.transformer_params, cfg, read),
        metadata={**loaded.metadata, "modelspec.merged_from": names},
    )


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
    adapter = adapters.read(run, run_config.read_config(run).model)
    origin = dataclasses.replace(Origin.from_metadata(adapter.metadata), trigger=trigger)
    facts = {**adapter.metadata, **origin.to_metadata()}
    adapter_writing.write(out, adapter.changes, naming=naming, metadata=facts, dtype=dtype)


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
    origin = Origin(trigger, releases.name_of(base), models[0].base_hash, rank=rank)
    facts = {**origin.to_metadata(), "ltx_jax.extracted_from": releases.name_of(tuned)}
    adapter_writing.write(out, changes, naming=naming, metadata=facts)


def _check_adapter_path(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"an adapter is one file: name it {out}.safetensors")
    if out.exists():
        raise ValueError(f"{out} exists: choose another name")
    files.check_writable(out)
