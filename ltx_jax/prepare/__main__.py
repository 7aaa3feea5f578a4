"""From raw videos to a data set: ltx-prepare CONFIG --input PATTERN --output DIR

Cuts videos into shots and clips, crops black bars, drops clips without motion, duplicates and clips
covered with text, scores and captions the others, and writes them with their provenance. DIR is
then a source of training data (`--data.source DIR`). DIR/dropped.csv lists the dropped clips with
reasons, DIR/report.html shows examples.

The same command continues a run that was stopped. Options of Apache Beam follow after `--`.
`ltx-prepare aesthetics-train --help` trains the head that scores pictures;
`ltx-prepare emoji --help` fetches and writes a data set of animated emoji;
`ltx-prepare references --help` draws edges or depth of clips, for training that follows them;
`ltx-prepare vocabulary --help` writes what a model knows, in words;
`ltx-prepare networks --help` converts weights of networks that compare videos.
"""

import argparse
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ltx_jax import config
from ltx_jax.checkpoints import lock
from ltx_jax.config import PrepareConfig, TrainTransformer
from ltx_jax.prepare.worker_process import is_not_from_beam
from ltx_jax.runtime import cli

_USAGE = (
    "CONFIG --input PATTERN [PATTERN ...] --output DIR [options] [--GROUP.FIELD VALUE ...] "
    "[-- BEAM OPTIONS]"
)


def prepare(
    cfg: PrepareConfig,
    inputs: Sequence[str],
    output: str | Path,
    *,
    work: str | Path | None = None,
    workers: int = 1,
    beam_options: Sequence[str] = (),
) -> None:
    """Makes a data set from raw videos.

    Args:
      cfg: settings of all stages.
      inputs: patterns, folders, files, or lists of files (`@list.txt`).
      output: a new or empty folder, or one begun with the same settings, inputs and captions.
      work: folder of intermediate results, which several runs may share; None: `output`/work.
      workers: number of processes, unless `beam_options` name another runner.
      beam_options: command-line options of Apache Beam.

    Raises:
      ValueError: if an input, setting or folder cannot be used, another process writes the folder,
        or all clips were dropped.
    """
    with _installed():
        from ltx_jax.data import listing
        from ltx_jax.prepare import beam_pipeline, clip_table, html_report, input_files, scoring

        scoring.check_models(cfg)
    training = _training(cfg.latents, output) if cfg.latents else None
    sources = input_files.find(inputs, listing.Columns(cfg.media_column, cfg.caption_column))
    plan = beam_pipeline.PreparationPlan.make(cfg, sources, output, work)
    if not plan.open().complete:
        with lock.locked(output, "--output"):
            beam_pipeline.run(plan, sources, workers, beam_options)
            clip_table.write_dropped(Path(output) / "dropped.csv", beam_pipeline.clips(plan))
            html_report.write(Path(output) / "report.html", cfg, beam_pipeline.clips(plan))
            beam_pipeline.finish(plan)
    if training:
        from ltx_jax.inference.encode_dataset import encode

        encode(training, Path(output) / "latents")


def _training(path: str, output: str | Path) -> TrainTransformer:
    """Reads the config of the training that will use the data set.

    Raises:
      ValueError: if the file contains something else.
    """
    cfg = config.load(path)
    if not isinstance(cfg, TrainTransformer):
        raise ValueError(f"--latents {path} is a {type(cfg).__name__}, not a TrainTransformer")
    data = dataclasses.replace(cfg.data, source=str(output), mix=())
    return dataclasses.replace(cfg, data=data)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Explains failed imports, and hides Beam's warnings about its optional dependencies."""
    root = logging.getLogger()  # Beam logs these warnings on the root logger
    root.addFilter(is_not_from_beam)
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"data preparation needs {error.name}: pip install '.[prepare]' in the repository"
        ) from error
    finally:
        root.removeFilter(is_not_from_beam)


@cli.command("prepare", interrupted="run the same command again to continue")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    if arguments[:1] == ["aesthetics-train"]:
        with _installed():
            from ltx_jax.prepare import aesthetics

        aesthetics.main(arguments[1:])
        return
    if arguments[:1] == ["emoji"]:
        from ltx_jax.prepare import emoji

        emoji.main(arguments[1:])
        return
    if arguments[:1] == ["references"]:
        from ltx_jax.prepare import references

        references.main(arguments[1:])
        return
    if arguments[:1] == ["vocabulary"]:
        from ltx_jax.prepare import vocabulary

        vocabulary.main(arguments[1:])
        return
    if arguments[:1] == ["networks"]:
        from ltx_jax.prepare import networks

        networks.main(arguments[1:])
        return
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, beam_options = arguments[:at], arguments[at + 1 :]
    program = cli.program_name("prepare")
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} {_USAGE}",
        description=(__doc__ or "").partition(":")[0],
        allow_abbrev=False,
    )
    parser.add_argument("config", help="settings of all stages: `clips`, or a Python file")
    parser.add_argument("--input", nargs="+", required=True, help="patterns, folders or @list.txt")
    parser.add_argument("--output", required=True, help="a new folder, or one to continue")
    parser.add_argument("--work", help="folder of intermediate results (default: DIR/work)")
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes on this machine"
    )
    args, overrides = parser.parse_known_args(own)
    # Beam logs the traceback of every error, which arrives here too.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    cfg = config.load(args.config, overrides, program=program)
    if not isinstance(cfg, PrepareConfig):
        raise ValueError(f"{args.config} is a {type(cfg).__name__}, not a PrepareConfig")
    prepare(
        cfg,
        args.input,
        args.output,
        work=args.work,
        workers=args.workers,
        beam_options=beam_options,
    )
    print(args.output)


if __name__ == "__main__":
    sys.exit(main())
