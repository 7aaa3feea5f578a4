"""Measures a model: ltx-evaluate vae|transformer|shapes|judge ...

vae          PSNR, SSIM, LPIPS and rFVD of reconstructions, and the grid in flat colours
transformer  the loss on clips it has not seen, at fixed times and with fixed noise
shapes       what the videos of a model of the procedural world show, by the judge
judge        the judge itself, on clips whose truth is known

Each prints a table and writes it as OUTPUT.json and OUTPUT.md.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_jax.runtime import cli

if TYPE_CHECKING:
    from ltx_jax.evaluate.metric_table import MetricRow


@cli.command("evaluate", interrupted="the metrics measured so far are in the output files")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    _run(_parser().parse_args(arguments))


def _run(given: argparse.Namespace) -> None:
    """Measures part by part, and writes what there is after each."""
    from ltx_jax.evaluate import metric_table
    from ltx_jax.runtime import files

    output = given.output or Path("outputs") / f"evaluate_{given.kind}"
    title, figures = f"Evaluation: {given.kind}", []
    settings = {name: value for name, value in vars(given).items() if name not in ("output", "run")}
    for place in metric_table.output_paths(output):
        files.check_writable(place)
    for found, about in given.run(given):
        settings |= about
        figures += found
        paths = metric_table.write(output, title, settings, figures)
    metric_table.show(title, figures)
    print(*paths, sep="\n")


# Metrics, and what the table is to say of how they were measured.
Parts = Iterator[tuple[list["MetricRow"], dict[str, Any]]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=cli.program_name("evaluate"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, add, run in (
        ("vae", _add_vae, _run_vae),
        ("transformer", _add_transformer, _run_transformer),
        ("shapes", _add_shapes, _run_shapes),
        ("judge", _add_judge, _run_judge),
    ):
        kind = kinds.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        kind.set_defaults(run=run)
        kind.add_argument("--output", type=Path, help="path without its ending")
        kind.add_argument("--seed", type=int, default=0, help="of all noise; judge: of the clips")
        add(kind)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="anything ltx-sample takes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def _add_text_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text_encoder", help="a T5 folder, if the checkpoint has none of its own")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="a folder, or shapes: held-out scenes")
    parser.add_argument(
        "--height", type=_positive, default=256, help="clips are scaled and cut to it"
    )
    parser.add_argument("--width", type=_positive, default=256, help="likewise")
    parser.add_argument("--num_frames", type=_positive, default=17, help="at most; cut to 8k+1")
    parser.add_argument(
        "--limit", type=_positive, help="at most so many clips, and as many pictures"
    )


def _add_vae(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_data(parser)
    parser.add_argument(
        "--frame_folders", action="store_true", help="each folder of pictures is a clip (DAVIS)"
    )
    parser.add_argument("--decode_timestep", type=float, default=0.0, help="noise of the latents")
    parser.add_argument(
        "--batch_size", type=_positive, default=1, help="clips of one length at a time"
    )
    parser.add_argument("--vgg", help="weights of VGG16 (safetensors), and")
    parser.add_argument("--lpips_heads", help="of LPIPS' linear heads: for LPIPS")
    parser.add_argument("--i3d", help="weights of I3D (safetensors): for rFVD")


def _add_transformer(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_text_encoder(parser)
    _add_data(parser)


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_text_encoder(parser)
    parser.add_argument("--config", help="sampling settings: of configs/sample, or a video's JSON")
    for name in ("height", "width", "num_frames", "num_inference_steps"):
        parser.add_argument(f"--{name}", type=_positive, help="in place of the settings'")
    for name in ("frame_rate", "guidance_scale"):
        parser.add_argument(f"--{name}", type=float, help="in place of the settings'")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some of the rows, in this order")
    parser.add_argument("--prompts", type=_positive, help="of each row, in place of its own number")
    parser.add_argument("--batch_size", type=_positive, default=8, help="videos at a time")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=_positive, default=1000)
    parser.add_argument("--height", type=_positive, default=96)
    parser.add_argument("--width", type=_positive, default=96)
    parser.add_argument("--num_frames", type=_positive, default=25)
    parser.add_argument("--frame_rate", type=float, default=24.0)


def _run_vae(given: argparse.Namespace) -> Parts:
    from ltx_jax.checkpoints import perceptual
    from ltx_jax.checkpoints.load import load_checkpoint
    from ltx_jax.config import ExecutionConfig
    from ltx_jax.evaluate import autoencoder, clip_reader

    if bool(given.vgg) != bool(given.lpips_heads):
        raise ValueError("LPIPS needs both --vgg and --lpips_heads")
    lpips = perceptual.read_lpips(given.vgg, given.lpips_heads) if given.vgg else None
    features = perceptual.read_i3d(given.i3d) if given.i3d else None
    loaded = load_checkpoint(given.checkpoint)
    if loaded.vae is None:
        raise ValueError(f"{given.checkpoint} holds no VAE")
    execution = ExecutionConfig(dtype=given.dtype)
    reconstruct = autoencoder.reconstructor(
        loaded, loaded.vae, execution, time=given.decode_timestep, seed=given.seed
    )
    factor = loaded.vae.temporal_factor
    cut = clip_reader.ClipFormat(given.num_frames, given.height, given.width, factor)
    skipped: list[str] = []
    clips = clip_reader.read_clips(
        given.data, cut, limit=given.limit, frame_folders=given.frame_folders, skipped=skipped
    )
    figures = autoencoder.reconstruction_metrics(
        _watched(clips),
        reconstruct,
        batch_size=given.batch_size,
        lpips=lpips,
        features=features,
    )
    _warn(skipped)
    yield figures, {"checkpoint_hash": loaded.source_hash, "skipped": skipped}
    yield autoencoder.flat_colour_metrics(reconstruct, cut), {}


def _run_transformer(given: argparse.Namespace) -> Parts:
    from ltx_jax.evaluate import clip_reader, transformer
    from ltx_jax.inference.pipeline import LTXPipeline

    pipe = LTXPipeline.from_pretrained(given.checkpoint, given.text_encoder, dtype=given.dtype)
    cut = clip_reader.ClipFormat(
        given.num_frames, given.height, given.width, pipe.vae.temporal_factor
    )
    skipped: list[str] = []
    clips = clip_reader.read_clips(
        given.data, cut, limit=given.limit, captioned=True, skipped=skipped
    )
    rows = transformer.loss_rows(pipe, _watched(clips), seed=given.seed)
    _warn(skipped)
    yield rows, {"checkpoint_hash": pipe.checkpoint.source_hash, "skipped": skipped}


def _run_shapes(given: argparse.Namespace) -> Parts:
    import rich.console
    import rich.progress

    from ltx_jax.config import load_sampling, sampling_options
    from ltx_jax.evaluate import autoencoder, metric_table, world_table
    from ltx_jax.inference.pipeline import LTXPipeline

    rows = list(world_table.ROWS) if given.rows is None else given.rows
    unknown = sorted(set(rows) - set(world_table.ROWS))
    if unknown:
        raise ValueError(
            f"--rows: there is no {', '.join(unknown)}; known: {' '.join(world_table.ROWS)}"
        )
    options = world_table.OPTIONS
    if given.config is not None:
        options = sampling_options(load_sampling(given.config))
    names = ("height", "width", "num_frames", "num_inference_steps", "frame_rate", "guidance_scale")
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    options = dataclasses.replace(options, seed=given.seed, **changes)
    pipe = LTXPipeline.from_pretrained(given.checkpoint, given.text_encoder, dtype=given.dtype)
    reconstruct = autoencoder.reconstructor(pipe.checkpoint, pipe.vae, pipe.execution)
    about = {"checkpoint_hash": pipe.checkpoint.source_hash, **dataclasses.asdict(options)}
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(batch: Any, *arguments: Any, **more: Any) -> Any:
                made = function(batch, *arguments, **more)
                progress.advance(task, len(batch))
                return made

            return call

        bench = world_table.WorldBenchmark(
            counted(pipe),
            counted(reconstruct),
            pipe.vae.temporal_factor,
            options,
            given.batch_size,
        )
        for name in rows:
            row = world_table.ROWS[name]
            prompts = row.prompts if given.prompts is None else given.prompts
            progress.reset(task, total=row.videos * prompts, description=name)
            figures = row.measure(bench, prompts)
            metric_table.show(name, figures)
            yield figures, about


def _run_judge(given: argparse.Namespace) -> Parts:
    from ltx_jax.evaluate import judge_accuracy

    size = judge_accuracy.ClipSize(given.num_frames, given.height, given.width, given.frame_rate)
    yield judge_accuracy.accuracy(given.clips, size, given.seed), {}


def _watched(clips: Iterator[Any]) -> Iterator[Any]:
    """Counts clips on stderr."""
    import rich.console
    import rich.progress

    columns = (rich.progress.TextColumn("{task.completed:.0f} clips"),)
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        for clip in clips:
            yield clip
            progress.advance(task)


def _warn(skipped: list[str]) -> None:
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} clips are left out", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
