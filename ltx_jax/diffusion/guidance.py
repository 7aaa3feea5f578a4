"""Guidance: the rows of the network's batch for a prediction, and how their velocities combine.

Besides the output of the network for the caption, a prediction may need its output for the negative
caption (classifier-free guidance), and for the caption with some blocks skipped (spatio-temporal
guidance). These branches are rows of one batch, in this order, each with one row per sample:
[negative ..., caption ..., perturbed ...].
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from ltx_jax.config import PerStep, SamplingConfig, STGMode
from ltx_jax.diffusion.denoiser import Denoiser
from ltx_jax.models.transformer import Skip


class Branches(NamedTuple):
    """Which branches a step has in addition to the caption's branch."""

    negative: bool
    perturbed: bool

    @property
    def count(self) -> int:
        """Rows per sample."""
        return 1 + self.negative + self.perturbed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scales:
    """The scales of guidance, for every step (s,) or for one step ().

    Attributes:
      cfg: weight of classifier-free guidance; used if there is a negative branch.
      stg: weight of spatio-temporal guidance; used if there is a perturbed branch.
      rescale: fraction by which the guided velocity's standard deviation moves from its own value
        (0) towards that of the caption's velocity; but exactly 1 disables the rescaling.
      keep: (s, layers) or (layers,), 0 for the blocks that the perturbed branch skips, else 1.
    """

    cfg: Any
    stg: Any
    rescale: Any
    keep: Any


@dataclasses.dataclass(frozen=True)
class GuidanceSchedule:
    """The guidance of a whole run: branches and scales of every step."""

    branches: tuple[Branches, ...]
    scales: Scales

    @property
    def needs_negative(self) -> bool:
        """Whether any step needs the negative caption."""
        return any(step.negative for step in self.branches)


def guidance_schedule(
    options: SamplingConfig, times: Float32[np.ndarray, "s"], num_layers: int
) -> GuidanceSchedule:
    """Assigns the guidance options to the steps of a run.

    An option that is a list has one value per entry of `guidance_timesteps`; a step at time t uses
    the value of the first entry that is at most t, or else the last value. Branches that have no
    effect in a step are left out: the negative one if its scale is at most 1; the perturbed one if
    its scale is not positive, if no block is skipped, or if the mode is "residual" (which has no
    effect in the released code either).

    Raises:
      ValueError: for lists of a wrong length, blocks that the network does not have, or an unknown
        mode.
    """
    if options.stg_mode not in get_args(STGMode):
        raise ValueError(f"stg_mode is {options.stg_mode!r}; known: {get_args(STGMode)}")
    entries = _entries(options.guidance_timesteps, times)
    cfg = _gather("guidance_scale", options.guidance_scale, entries, options)
    stg = _gather("stg_scale", options.stg_scale, entries, options)
    rescale = _gather("rescaling_scale", options.rescaling_scale, entries, options)
    skipped = _gather_blocks(entries, options)

    keep = np.ones((len(times), num_layers), np.float32)
    branches = []
    for i, blocks in enumerate(skipped):
        if stg[i] > 0:
            keep[i, _checked_blocks(blocks, num_layers)] = 0
        else:
            rescale[i] = 1
        perturbed = stg[i] > 0 and len(blocks) > 0 and options.stg_mode != "residual"
        branches.append(Branches(bool(cfg[i] > 1), bool(perturbed)))
    return GuidanceSchedule(tuple(branches), Scales(cfg, stg, rescale, keep))


def _entries(
    guidance_timesteps: Sequence[float] | None, times: Float32[np.ndarray, "s"]
) -> list[int]:
    """The index into the options' lists for each time; compared in float32, as upstream."""
    if guidance_timesteps is None:
        return [0] * len(times)
    if not guidance_timesteps:
        raise ValueError("guidance_timesteps is empty; leave it out, or give a time per entry")
    reached = np.asarray(guidance_timesteps, np.float32) <= times[:, None]
    return [int(row.argmax()) if row.any() else len(row) - 1 for row in reached]


def _gather(
    name: str, value: PerStep, entries: list[int], options: SamplingConfig
) -> Float32[np.ndarray, "s"]:
    if isinstance(value, Sequence):
        _check_length(name, value, options)
        return np.asarray(value, np.float32)[entries]
    return np.full(len(entries), value, np.float32)


def _gather_blocks(entries: list[int], options: SamplingConfig) -> list[tuple[int, ...]]:
    blocks = options.skip_block_list
    flat = tuple(entry for entry in blocks if isinstance(entry, int))
    nested = [tuple(entry) for entry in blocks if isinstance(entry, Sequence)]
    if flat and nested:
        raise ValueError(f"skip_block_list mixes numbers and lists: {blocks}")
    if not nested:
        return [flat] * len(entries)
    _check_length("skip_block_list", nested, options)
    return [nested[entry] for entry in entries]


def _check_length(name: str, value: Sequence[Any], options: SamplingConfig) -> None:
    times = options.guidance_timesteps
    if times is None:
        raise ValueError(
            f"{name} is a list, {list(value)}: give guidance_timesteps, the time from which each "
            f"entry counts, or a single value"
        )
    if len(value) != len(times):
        raise ValueError(
            f"{name} has {len(value)} entries and guidance_timesteps {len(times)}: they must be "
            "equally long"
        )


def _checked_blocks(blocks: tuple[int, ...], num_layers: int) -> list[int]:
    unknown = [block for block in blocks if not 0 <= block < num_layers]
    if unknown:
        raise ValueError(
            f"skip_block_list names the blocks {unknown}, but this transformer has the blocks 0 to "
            f"{num_layers - 1}"
        )
    return list(blocks)


def predict(
    denoiser: Denoiser,
    params: Any,
    x: Float[Array, "b n c"],
    time: Float[Array, "b #n"],
    state: Any,
    *,
    rows: Any,
    branches: Branches,
    scales: Scales,
    stg_mode: STGMode,
    cfg_star: bool,
) -> tuple[Float[Array, "b n c"], Any]:
    """The guided velocity of each sample in float32, and the denoiser's next state.

    Args:
      denoiser: the network.
      params: its prepared parameters.
      x: tokens of each sample.
      time: times of the tokens.
      state: the denoiser's state.
      rows: the contexts of all branches, from `context_rows`.
      branches: which branches there are.
      scales: the scales of this step.
      stg_mode: how blocks are skipped (`models.transformer.Skip`).
      cfg_star: see `combine`.
    """
    skip = None
    if branches.perturbed:
        skip = Skip(stg_mode, skip_mask(scales.keep, branches, x.shape[0]))
    x, time = repeat_rows(x, branches), repeat_rows(time, branches)
    velocities, state = denoiser(params, x, time, rows, skip, state)
    return combine(velocities, branches, scales, cfg_star), state


def context_rows(context: Any, negative: Any, branches: Branches) -> Any:
    """Concatenates the contexts of all branches along the batch axis.

    Args:
      context: the context, prepared by a denoiser.
      negative: the context of the negative caption; None if no branch needs it. It belongs to the
        same tokens, so rotary tables that all samples share are taken from `context`.
      branches: which branches there are.
    """
    if branches.negative and negative is None:
        raise ValueError("classifier-free guidance needs negative captions, got none")
    parts = [negative] * branches.negative + [context] * (1 + branches.perturbed)
    rope = context.rope
    if all(table.shape[0] == 1 for table in jax.tree.leaves(rope)):
        parts = [dataclasses.replace(part, rope=None) for part in parts]
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        return dataclasses.replace(joined, rope=rope)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def repeat_rows(x: Float[Array, "b *n"], branches: Branches) -> Float[Array, "r *n"]:
    """Repeats the batch once for every branch."""
    return jnp.concatenate([x] * branches.count)


def skip_mask(
    keep: Float[Array, "layers"], branches: Branches, batch: int
) -> Float[Array, "layers r"]:
    """The mask of `models.transformer.Skip`: only the rows of the perturbed branch skip blocks."""
    shape = (keep.shape[0], batch)
    whole = jnp.ones((shape[0], batch * (branches.count - 1)), keep.dtype)
    return jnp.concatenate([whole, jnp.broadcast_to(keep[:, None], shape)], axis=1)


def combine(
    velocities: Float[Array, "r n c"], branches: Branches, scales: Scales, cfg_star: bool
) -> Float[Array, "b n c"]:
    """Combines the velocities of all branches into the guided velocity of each sample, in float32.

    Args:
      velocities: the network's output, with the rows laid out as described at the top.
      branches: which branches there are.
      scales: the scales of this step.
      cfg_star: whether to first replace the negative velocity by the projection of the caption's
        velocity onto it (CFG-Zero*, arXiv 2503.18886).
    """
    rows = iter(jnp.split(velocities.astype(jnp.float32), branches.count))
    negative = next(rows) if branches.negative else None
    text = next(rows)
    perturbed = next(rows) if branches.perturbed else None

    guided = text
    if negative is not None:
        if cfg_star:
            onto = jnp.sum(text * negative, (1, 2), keepdims=True)
            square = jnp.sum(negative * negative, (1, 2), keepdims=True)
            negative = onto / (square + 1e-8) * negative
        guided = negative + scales.cfg * (text - negative)
    if perturbed is not None:
        guided = guided + scales.stg * (text - perturbed)
    if branches.count == 1:
        return guided
    deviation = jnp.std(text, (1, 2), keepdims=True, ddof=1)
    ratio = deviation / jnp.std(guided, (1, 2), keepdims=True, ddof=1)
    factor = scales.rescale * ratio + (1 - scales.rescale)
    return guided * jnp.where(scales.rescale == 1, 1.0, factor)
