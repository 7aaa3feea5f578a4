"""The clips of a run's validation: held out from training, and the same every time."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ltx_jax.config import BucketConfig, DataConfig, RunConfig, SourceConfig
from ltx_jax.data import references
from ltx_jax.data.loader import Batch, Loader, stack
from ltx_jax.data.sources import Encoding, StoredLatents, world_example
from ltx_jax.world import render


def read_validation_clips(
    run: RunConfig, data: DataConfig, check: Callable[[Encoding], None] = lambda encoding: None
) -> Batch:
    """Reads `run.validation_clips` clips, in the size of the first bucket of videos.

    If all buckets are of single pictures, it is the size of the first one.

    Args:
      run: names the source of the clips.
      data: how clips are cut, here without random starts, crops and flips.
      check: called with the encoding of stored latents; raises a ValueError if they cannot be used.

    Raises:
      ValueError: if the source cannot be used.
    """
    size = next((size for size in data.sizes if size.num_frames > 1), data.sizes[0])
    size = dataclasses.replace(size, batch_size=run.validation_clips)
    if run.validation_source is None:
        if data.companions:
            raise ValueError(
                f"the validation clips of the procedural world have no "
                f"{' and no '.join(data.companions)}s: name clips that have them with "
                "--run.validation_source"
            )
        return _world_clips(size, data)
    fixed = dataclasses.replace(
        data,
        mix=(SourceConfig(run.validation_source),),
        buckets=(size,),
        random_start=False,
        random_crop=False,
        flip=False,
    )
    loader = Loader(fixed, (("none", 1.0),), seed=0)
    if loader.encoding is not None:
        try:
            check(loader.encoding)
        except ValueError as error:
            raise ValueError(f"--run.validation_source {run.validation_source}: {error}") from error
    return loader.batch(0)


def _world_clips(size: BucketConfig, data: DataConfig) -> Batch:
    rates = [data.frame_rates[i % len(data.frame_rates)] for i in range(size.batch_size)]
    clips = (
        render.clip(
            i,
            split="held_out",
            num_frames=size.num_frames,
            height=size.height,
            width=size.width,
            fps=rate,
        )
        for i, rate in enumerate(rates)
    )
    examples = map(world_example, clips, rates)
    return stack(size, "none", [references.with_reference(one, data) for one in examples])


def require_pixels(batch: Batch) -> UInt8[np.ndarray, "b t h w 3"]:
    """Returns the frames of a batch.

    Raises:
      ValueError: if the batch holds latents instead.
    """
    if batch.frames is None:
        raise ValueError("this stage is trained on pixels, but this data set holds only latents")
    return batch.frames


def select_examples(batch: Batch, chosen: Sequence[int]) -> Batch:
    """The batch of the examples with the indices `chosen`, which may repeat."""

    def take(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(value[i] for i in chosen)
        if isinstance(value, StoredLatents):
            return StoredLatents(**take(dataclasses.asdict(value)))
        if isinstance(value, dict):
            return {name: take(array) for name, array in value.items()}
        return None if value is None else value[list(chosen)]

    names = (
        *("captions", "frame_rate", "frames", "latents", "embeddings", "context"),
        *("reference", "mask"),
    )
    return dataclasses.replace(batch, **{name: take(getattr(batch, name)) for name in names})
