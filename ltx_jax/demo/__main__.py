"""A web page that makes videos: ltx-demo [--host --port --limit] [options]

Every option of ltx-sample is taken too: the model (--checkpoint, --config, --text_encoder; without
them the small model that ships), and what the fields of the page start from. The page is for
this machine alone unless --host says otherwise; it asks for no password.
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
    # All that the page can serve lies in this folder, and is gone when it ends.
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
        "--limit", type=float, default=4.0, help="pixels of a video, in those of the settings (4)"
    )
    return parser


def _serve(given: argparse.Namespace, rest: Sequence[str], folder: Path) -> None:
    from ltx_jax import sample

    settings = sample.parse(rest)
    try:
        from ltx_jax.demo import page
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install '.[demo]' in the repository") from error
    from ltx_jax.demo.studio import Studio

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    print("loading ...", file=sys.stderr)
    studio = Studio(settings, folder, limit=given.limit, arguments=rest)
    blocks = page.launch(studio, given.host, given.port)
    print(f"The page is at {blocks.local_url} (end it with Ctrl-C)")
    blocks.block_thread()


if __name__ == "__main__":
    sys.exit(main())
