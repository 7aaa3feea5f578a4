"""A web page that makes videos: python -m ltx_jax.demo [--host --port --limit] [options]

Every option of sample.py is taken too: the model (--checkpoint, --config, --text_encoder; without
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

from ltx_jax import sample


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. A user's error is one line on stderr and a 2."""
    given, rest = _parser().parse_known_args(arguments)
    try:
        # All that the page can serve lies in this folder, and is gone when it ends.
        with tempfile.TemporaryDirectory(prefix="ltx_jax_demo_") as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            _serve(given, rest, Path(folder))
    except (ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"ltx_jax.demo: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ltx_jax.demo",
        allow_abbrev=False,  # what sample.py takes is not ours
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
