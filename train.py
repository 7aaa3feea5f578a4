"""Trains what a config describes: python train.py configs/NAME.py [--run.steps 20 ...]."""

import sys

from ltx_jax import config


def main(args: list[str]) -> int:
    """Returns the exit status; mistakes of the user are one line."""
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: python train.py CONFIG.py [--GROUP.FIELD VALUE ...]\n"
            "       python train.py CONFIG.py --help    lists every setting of a config"
        )
        return 0 if args else 2
    try:
        cfg = config.load(args[0], args[1:])
        if not isinstance(cfg, config.TrainVAE | config.TrainTransformer):
            raise ValueError(f"{args[0]} holds a {type(cfg).__name__}: nothing to train")

        from ltx_jax.sample import use_compilation_cache  # so that --help is quick
        from ltx_jax.training.loop import train

        use_compilation_cache()
        train(cfg, lambda line: print(line, flush=True))
    except (ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"train.py: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the last checkpoint is whole", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
