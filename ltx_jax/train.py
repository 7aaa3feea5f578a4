"""Trains what a config describes: ltx-train CONFIG [--GROUP.FIELD VALUE ...]."""

import argparse
import sys

from ltx_jax import config
from ltx_jax.runtime import cli

USAGE = """usage: {program} CONFIG [--GROUP.FIELD VALUE ...] [--profile] [--evaluate]
       [--plan TARGET]

  CONFIG                the name of a config that ships (ltxv_2b), or a Python file: FILE.py or
                        FILE.py:NAME
  --GROUP.FIELD VALUE   another value for one of its settings
  --profile             also write a profiler trace of a few steps to RUN/profile
  --evaluate            do not train: validate the latest checkpoint and print the metrics
  --plan TARGET         do not train: estimate the memory and time of a step on devices that need
                        not be present, such as v5p:4x4x4, v6e:16x16, h200x8 or cpu:8
  CONFIG --help         list all settings"""


@cli.command("train", interrupted="the last checkpoint is complete")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    program = cli.program_name("train")
    if not arguments:
        raise ValueError(f"name the config to train; {program} --help explains")
    if arguments[0] in ("-h", "--help"):
        print(USAGE.format(program=program))
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--plan")
    options, overrides = parser.parse_known_args(arguments[1:])
    cfg = config.load(arguments[0], overrides, program=program)
    if not isinstance(cfg, config.TrainConfig):
        raise ValueError(
            f"{arguments[0]} holds a {type(cfg).__name__}, which is not a training config"
        )

    if options.plan:
        from ltx_jax.planning import plan

        plan.prepare(options.plan)
        plan.plan(cfg, options.plan, _log)
        return

    from ltx_jax.runtime.compiled import use_compilation_cache
    from ltx_jax.training import loop, peers, process

    use_compilation_cache()
    process.join(cfg.distributed)
    with peers.watched(cfg.distributed, program):
        if options.evaluate:
            loop.evaluate(cfg, _log)
        else:
            loop.train(cfg, _log, options.profile)


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
