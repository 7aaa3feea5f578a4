"""From raw videos to a data set: ltx-prepare CONFIG --input PATTERN --output DIR

Cuts videos into shots and clips, crops black bars, drops what does not move, what is there twice
and what is covered with text, scores and captions the rest, and writes it all with its provenance;
DIR is then a source of training data (`--data.source DIR`). DIR/dropped.csv says what was dropped
and why, DIR/report.html shows it.

The same command goes on where one was stopped. Options of Apache Beam follow after `--`.
`ltx-prepare aesthetics-train --help` trains the head that scores pictures.
"""

import argparse
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ltx_jax import config
from ltx_jax.config import PrepareConfig, TrainTransformer
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
    """Makes a data set of raw videos.

    Args:
      cfg: what every stage does.
      inputs: patterns, folders, files, or lists of files (`@list.txt`).
      output: a folder: new, empty, or begun with the same settings and inputs.
      work: the folder of intermediate results, which several runs may share; None: in `output`.
      workers: processes, where no other runner is named.
      beam_options: of Apache Beam.

    Raises:
      ValueError: if inputs, settings and folders do not fit, or nothing is left to store.
    """
    with _installed():
        from ltx_jax.prepare import beam_pipeline, clip_table, html_report, input_files, scoring

        scoring.check_models(cfg)
    training = _training(cfg.latents, output) if cfg.latents else None
    paths = input_files.find(inputs)
    plan = beam_pipeline.PreparationPlan.make(cfg, paths, output, work)
    if not plan.open().complete:
        beam_pipeline.run(plan, paths, [*_runner(workers, beam_options), *beam_options])
        clip_table.write_dropped(Path(output) / "dropped.csv", beam_pipeline.clips(plan))
        html_report.write(Path(output) / "report.html", cfg, beam_pipeline.clips(plan))
        beam_pipeline.finish(plan)
    if training:
        from ltx_jax.inference.encode_dataset import encode

        encode(training, Path(output) / "latents")


def _training(path: str, output: str | Path) -> TrainTransformer:
    """The training that is to use the set.

    Raises:
      ValueError: if the file holds something else.
    """
    cfg = config.load(path)
    if not isinstance(cfg, TrainTransformer):
        raise ValueError(f"--latents {path} holds a {type(cfg).__name__}, not a TrainTransformer")
    data = dataclasses.replace(cfg.data, source=str(output), mix=())
    return dataclasses.replace(cfg, data=data)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Imports within say what to install where something is missing."""
    logging.disable(logging.WARNING)  # Beam misses parts of itself that nobody needs here
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"data preparation needs {error.name}: pip install '.[prepare]' in the repository"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _runner(workers: int, options: Sequence[str]) -> list[str]:
    """Options for Beam's own runner, unless another one is named."""
    if any(option.partition("=")[0] == "--runner" for option in options):
        return []
    # By its full name: Beam's DirectRunner looks for another one on the network first.
    name = "apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"
    mode = "in_memory" if workers == 1 else "multi_processing"
    return [f"--runner={name}", f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]


@cli.command("prepare", interrupted="run the same command again to continue")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    if arguments[:1] == ["aesthetics-train"]:
        with _installed():
            from ltx_jax.prepare import aesthetics

        aesthetics.main(arguments[1:])
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
    parser.add_argument("config", help="what every stage does: `clips`, or a Python file")
    parser.add_argument("--input", nargs="+", required=True, help="patterns, folders or @list.txt")
    parser.add_argument("--output", required=True, help="a new folder, or one to go on with")
    parser.add_argument("--work", help="intermediate results; DIR/work if not given")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    given, overrides = parser.parse_known_args(own)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    cfg = config.load(given.config, overrides, program=program)
    if not isinstance(cfg, PrepareConfig):
        raise ValueError(f"{given.config} holds a {type(cfg).__name__}: nothing to prepare")
    prepare(
        cfg,
        given.input,
        given.output,
        work=given.work,
        workers=given.workers,
        beam_options=beam_options,
    )
    print(given.output)


if __name__ == "__main__":
    sys.exit(main())
