"""The adapters of a pipeline: which are loaded, how strongly, and the parameters with them."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax.checkpoints import adapter_trees, adapters
from ltx_jax.checkpoints.adapters import Adapter
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import TransformerConfig
from ltx_jax.diffusion.denoiser import Denoiser, Fast
from ltx_jax.models import adapter

_log = logging.getLogger(__name__)

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Loras:
    """Adapters with their strengths.

    Attributes:
      merged: those that are merged into the transformer's parameters, in their order.
      apart: those that are kept beside the transformer's parameters.
      vae: those of the VAE's decoder, which are merged into its parameters.
    """

    merged: tuple[tuple[Adapter, float], ...] = ()
    apart: tuple[tuple[Adapter, float], ...] = ()
    vae: tuple[tuple[Adapter, float], ...] = ()

    @property
    def all(self) -> tuple[tuple[Adapter, float], ...]:
        """All of them."""
        return self.merged + self.apart + self.vae

    def loaded(
        self, loras: Sequence[tuple[Path, float]], checkpoint: Checkpoint, merge: bool
    ) -> "Loras":
        """Adds adapters, or replaces those with equal paths; reads a file again if it has changed.

        Raises:
          ValueError: if a file is no adapter of the checkpoint's networks.
        """
        strengths = {adapters.file_of(path): float(strength) for path, strength in loras}
        if not merge and strengths.keys() <= {a.path for a, _ in self.apart}:
            apart = tuple((a, strengths.get(a.path, old)) for a, old in self.apart)
            return dataclasses.replace(self, apart=apart)
        before = {adapter.path: adapter for adapter, _ in self.all}
        new = tuple(
            (_read(path, before.get(path), checkpoint), strength)
            for path, strength in strengths.items()
        )
        left = self._without(set(strengths))
        vae = tuple(one for one in new if one[0].network == "vae")
        new = tuple(one for one in new if one not in vae)
        left = dataclasses.replace(left, vae=left.vae + vae)
        if merge:
            return dataclasses.replace(left, merged=left.merged + new)
        return dataclasses.replace(left, apart=left.apart + new)

    def unloaded(self, path: Path | None) -> "Loras":
        """Takes the adapter of a path out; None takes all of them out.

        Raises:
          ValueError: if it is not loaded.
        """
        if path is None:
            return Loras()
        left = self._without({adapters.file_of(path)})
        if left == self:
            names = ", ".join(str(a.path) for a, _ in self.all) or "none"
            raise ValueError(f"{path} is not loaded; loaded: {names}")
        return left

    def _without(self, paths: set[Any]) -> "Loras":
        parts = (self.merged, self.apart, self.vae)
        return Loras(*(tuple((a, s) for a, s in part if a.path not in paths) for part in parts))

    def parameters(
        self, stored: Any, cfg: TransformerConfig, mesh: Mesh | None, *, donate: bool
    ) -> Any:
        """The stored parameters of a transformer with these adapters.

        Args:
          stored: the stored parameters.
          cfg: the transformer.
          mesh: the devices.
          donate: reuses the memory of the stored parameters, which are not used any more.

        Raises:
          ValueError: if one of `apart` cannot be kept apart.
        """
        tree = _placed(adapter_trees.beside(self.apart, cfg), mesh)
        merged = adapters.merge(stored, cfg, self.merged, donate=donate)
        return adapter.attach(merged, tree) if self.apart else merged

    def form(self, fast: bool | None, denoiser: Denoiser) -> bool | None:
        """Which form of the transformer to ask for: the plain one if adapters are kept apart.

        Args:
          fast: what was asked for without them, as in `sampling_form`.
          denoiser: the form up to now; a notice says if it was the fast one.
        """
        if not self.apart:
            return fast
        if isinstance(denoiser, Fast):
            _log.warning(
                "adapters kept apart from the weights are computed by the plain form of the "
                "transformer, in place of the fast one: merge them (merge=True) to sample faster"
            )
        return False

    def differ_in_strength_alone(self, other: "Loras") -> bool:
        """Whether the others differ only in strengths of those that are kept apart."""
        mine, theirs = ([a for a, _ in loras.apart] for loras in (self, other))
        rest = [(loras.merged, loras.vae) for loras in (self, other)]
        return bool(mine) and mine == theirs and rest[0] == rest[1]

    def with_strengths(self, params: Any, cfg: TransformerConfig, mesh: Mesh | None) -> Any:
        """Parameters with these adapters, from those with others that differ in strength alone."""
        scales = _placed(adapter_trees.scales(self.apart, cfg), mesh)
        return adapter.rescale(params, scales)


def _read(path: Path, before: Adapter | None, checkpoint: Checkpoint) -> Adapter:
    """Reads an adapter, unless it is loaded already and its file has not changed."""
    networks = checkpoint.transformer, checkpoint.vae
    if before is not None:
        return adapters.read_again(before, *networks)
    adapter = adapters.read(path, *networks)
    adapters.check_base(adapter, checkpoint)
    return adapter


def _placed(tree: Any, mesh: Mesh | None) -> Any:
    """Adapters are small: on a mesh, every device has a copy."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, NamedSharding(mesh, P()))
