"""A web page that makes videos: ltx-demo [--host --port --limit] [options]

Every option of ltx-sample is accepted too: those that choose the model (--checkpoint, --config,
--text_encoder; by default the small model that ships), and the initial values of the page's fields.
The page is reachable from this machine only unless --host is set; it has no password.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ltx_jax.runtime import cli


@cli.command("demo", interrupted="the page is closed")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    options, rest = _parser().parse_known_args(arguments)
    # The page can serve files of this folder only, and the folder is deleted at the end.
    with tempfile.TemporaryDirectory(prefix="ltx_jax_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        _serve(options, rest, Path(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=cli.program_name("demo"),
        allow_abbrev=False,  # options of ltx-sample are not ours
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--names",
        nargs="+",
        default=(),
        help="host names under which browsers reach the page, besides IP addresses and localhost",
    )
    parser.add_argument(
        "--loras", type=Path, help="a folder of adapters, of which visitors may choose one"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=4.0,
        help="most pixels of a video, as a multiple of a video with the initial settings",
    )
    return parser


def _serve(options: argparse.Namespace, rest: Sequence[str], folder: Path) -> None:
    from ltx_jax import sample

    settings = sample.parse(rest)
    try:
        from ltx_jax.demo import page
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install '.[demo]' in the repository") from error
    from ltx_jax.demo.studio import Studio

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the page like Ctrl-C
    print("loading ...", file=sys.stderr)
    studio = Studio(settings, folder, limit=options.limit, arguments=rest, loras=options.loras)
    blocks = page.launch(studio, options.host, options.port, options.names)
    print(f"The page is at {blocks.local_url} (end it with Ctrl-C)")
    blocks.block_thread()


if __name__ == "__main__":
    sys.exit(main())
