"""Encodes clips and captions once, before training: ltx-encode CONFIG --output DIR

CONFIG is a config of transformer training. Its VAE encodes every example of its data, once for each
bucket that the example fits into. Its text encoder encodes every caption, unless the config trains
it. DIR is then a source of training data (`--data.source DIR`).

CONFIG may also describe a student: then its teacher's paths are sampled, from which it is trained,
and DIR is its `distillation.paths`.

The same command, run again, continues where it was stopped. Several machines share the work if
each runs it with its own `--worker`.
"""

import argparse
import functools
import sys
from typing import Any

from ltx_jax import config
from ltx_jax.config import TrainStudent, TrainTransformer
from ltx_jax.runtime import cli


@cli.command("encode", interrupted="run the same command again to continue")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    program = cli.program_name("encode")
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} CONFIG --output DIR [options] [--GROUP.FIELD VALUE ...]",
        description=(__doc__ or "").partition(":")[0],
        allow_abbrev=False,
    )
    parser.add_argument("config", help="the config of a transformer's training, by name or path")
    parser.add_argument("--output", required=True, help="a new folder, or one to continue")
    parser.add_argument("--examples", type=int, help="examples per source and bucket, at most")
    parser.add_argument("--keyframes", type=int, default=4, help="single frames per clip to encode")
    parser.add_argument("--shard_size", type=int, default=256, help="examples per file")
    parser.add_argument("--worker", type=int, default=0, help="index of this process, from 0")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    options, overrides = parser.parse_known_args(arguments)
    cfg = config.load(options.config, overrides, program=program)
    if not isinstance(cfg, TrainTransformer):
        raise ValueError(
            f"{options.config} holds a {type(cfg).__name__}: ltx-encode takes a config of "
            "transformer training"
        )

    from ltx_jax.runtime.compiled import use_compilation_cache

    use_compilation_cache()
    shared: dict[str, Any] = dict(
        examples=options.examples,
        shard_size=options.shard_size,
        worker=(options.worker, options.workers),
        report=functools.partial(print, flush=True),
    )
    if isinstance(cfg, TrainStudent):
        from ltx_jax.training.distillation.paths import sample_paths

        if options.examples is None:
            raise ValueError("set the number of paths (--examples)")
        complete = sample_paths(cfg, options.output, **shared)
    else:
        from ltx_jax.inference.encode_dataset import encode

        complete = encode(cfg, options.output, keyframes=options.keyframes, **shared)
    if complete:
        print(options.output)


if __name__ == "__main__":
    sys.exit(main())
