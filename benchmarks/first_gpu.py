"""The first measurements on a new GPU, in at most nine minutes:

  python benchmarks/first_gpu.py

It measures peak rates, matmuls, attention, convolutions, the transformer, twenty steps, the VAE, a
prompt to a video, compilation and start-up. It needs only jax, flax, jaxtyping and numpy, and this
package need not be installed. Sections and options are those of `python -m benchmarks.run`.
"""

import pathlib
import sys

SECTIONS = ("gemm", "attention", "conv", "transformer", "sampler", "vae", "headline", "startup")


def main(argv: list[str] | None = None) -> int:
    """Measures; returns the exit status."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from benchmarks import run

    options = sys.argv[1:] if argv is None else argv
    return run.main([*SECTIONS, "--budget", "540", *options])


if __name__ == "__main__":
    sys.exit(main())
