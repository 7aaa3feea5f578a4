"""Fits the map from latents to colours that previews show: ltx-preview CHECKPOINT [--data SOURCE]

Encodes clips, and fits a linear map from each latent to a few pixels, by least squares. It is
stored beside the checkpoint, where sampling (`--preview FILE`), the web page and training find it.
"""

import argparse
import sys
from pathlib import Path

from ltx_jax.runtime import cli


@cli.command("preview", interrupted="nothing was written")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog=cli.program_name("preview"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="anything that --checkpoint of ltx-sample takes")
    parser.add_argument("--data", default="shapes", help="clips, as --data.source of ltx-train")
    parser.add_argument("--clips", type=int, default=64, help="number of clips")
    parser.add_argument("--num_frames", type=int, default=25)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--side", type=int, default=4, help="pixels per latent, in each direction")
    parser.add_argument("--output", type=Path, help="a file; default: beside the checkpoint")
    options = vars(parser.parse_args(arguments))

    from ltx_jax.inference.fit_latent_colours import fit
    from ltx_jax.runtime.compiled import use_compilation_cache

    use_compilation_cache()
    fit(**options)


if __name__ == "__main__":
    sys.exit(main())
