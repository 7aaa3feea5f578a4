"""References of clips: ltx-prepare references SOURCE --preprocessor canny

Draws the edges (canny) or the depth (depth:MODEL, any depth model of transformers) of every clip of
a folder or table, and writes it beside the clip, as clip_reference.mp4 for clip.mp4: there
`--data.reference files` finds it. Clips that have a reference are left alone, so the same command
continues after an interruption.
"""

import sys
from pathlib import Path

import rich.console
import rich.progress

from ltx_jax.data import folder, preprocessors, video, writing
from ltx_jax.runtime import cli

_CRF = 10  # lines of one pixel survive it


def draw_references(source: str, name: str) -> list[Path]:
    """Writes the references of clips that have none; returns their paths.

    Args:
      source: a folder or a table of clips.
      name: as in `preprocessors.preprocessor`.

    Raises:
      ValueError: if there is no such source or preprocessor, or a clip cannot be read.
    """
    draw = preprocessors.preprocessor(name)
    clips = folder.list_clips(source, allow_empty_captions=True)
    places = [clip.place for clip in clips if clip.companions.reference is None]
    written = []
    bar = rich.console.Console(stderr=True)
    for place in rich.progress.track(places, "drawing references", console=bar):
        if not isinstance(place, Path):
            raise ValueError(f"{place} lies in an archive, where nothing is written: unpack it")
        frames, rate = video.read_video(place)
        path = place.with_name(f"{place.stem}_reference.mp4")
        writing.write_video(path, draw(frames), rate, crf=_CRF)
        written.append(path)
    return written


def main(arguments: list[str]) -> None:
    """Runs the command."""
    parser = cli.subcommand_parser("prepare", "references", __doc__)
    parser.add_argument("source", help="a folder or a table of clips")
    parser.add_argument("--preprocessor", required=True, help="canny, or depth:MODEL")
    options = parser.parse_args(arguments)
    count = len(draw_references(options.source, options.preprocessor))
    print(f"{count} references written", file=sys.stderr)
