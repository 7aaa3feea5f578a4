"""Trains what a config describes: python train.py configs/NAME.py [--run.steps 20 ...]."""

import argparse
import sys

from ltx_jax import config

USAGE = """usage: python train.py CONFIG.py [--GROUP.FIELD VALUE ...] [--profile] [--evaluate]
                                 [--plan TARGET]

  CONFIG.py             a file of configs/, or FILE.py:NAME
  --GROUP.FIELD VALUE   another value for one of its settings
  --profile             write a profiler's trace of a few steps to RUN/profile, then go on
  --evaluate            train nothing: validate the latest checkpoint and print the figures
  --plan TARGET         train nothing: say what a step takes on devices that need not be here, such
                        as v5p:4x4x4, v6e:16x16, h200x8 or cpu:8
  CONFIG.py --help      list all settings"""


def main(args: list[str]) -> int:
    """Returns the exit status; mistakes of the user are one line."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--profile", action="store_true")
    own.add_argument("--evaluate", action="store_true")
    own.add_argument("--plan")
    flags, overrides = own.parse_known_args(args[1:])
    try:
        cfg = config.load(args[0], overrides)
        if not isinstance(cfg, config.TrainVAE | config.TrainTransformer):
            raise ValueError(f"{args[0]} holds a {type(cfg).__name__}: nothing to train")

        def log(line: str) -> None:
            print(line, flush=True)

        if flags.plan:
            from ltx_jax.planning import plan

            plan.prepare(flags.plan)
            plan.plan(cfg, flags.plan, log)
            return 0

        from ltx_jax.runtime.compiled import use_compilation_cache  # so that --help is quick
        from ltx_jax.training import loop, process

        use_compilation_cache()
        process.join(cfg.distributed)
        if flags.evaluate:
            loop.evaluate(cfg, log)
        else:
            loop.train(cfg, log, flags.profile)
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"train.py: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the last checkpoint is whole", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
