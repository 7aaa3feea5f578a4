"""Measures a model: ltx-evaluate vae|transformer|shapes|emoji|judge ...

vae          PSNR, SSIM, LPIPS and rFVD of reconstructions, and the grid left in flat colours
transformer  the training loss on clips, at fixed times and with fixed noise
shapes       how well a model of the procedural world follows its prompts, according to the judge
emoji        how well a model of animated emoji follows its prompts
judge        accuracy of the judge of the procedural world, on rendered clips

Each prints a table and writes it to OUTPUT.json and OUTPUT.md.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_jax.runtime import cli

if TYPE_CHECKING:
    from rich.progress import Progress

    from ltx_jax.evaluate.emoji_table import EmojiTable
    from ltx_jax.evaluate.metric_table import MetricRow


@cli.command("evaluate", interrupted="the metrics measured so far are in the output files")
def main(arguments: list[str]) -> None:
    """Runs the command; returns its exit status."""
    _run(_parser().parse_args(arguments))


def _run(args: argparse.Namespace) -> None:
    """Measures part by part, and writes the table after each part."""
    from ltx_jax.evaluate import metric_table
    from ltx_jax.runtime import files

    output = args.output or Path("outputs") / f"evaluate_{args.kind}"
    title, rows = f"Evaluation: {args.kind}", []
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "run")}
    for path in metric_table.output_paths(output):
        files.check_writable(path)
    for new_rows, new_settings in args.run(args):
        settings |= new_settings
        rows += new_rows
        paths = metric_table.write(output, title, settings, rows)
    metric_table.show(title, rows)
    print(*paths, sep="\n")


# Rows of a part of the table, and settings to store with them.
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
        ("emoji", _add_emoji, _run_emoji),
        ("judge", _add_judge, _run_judge),
    ):
        kind = kinds.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        kind.set_defaults(run=run)
        kind.add_argument("--output", type=Path, help="path of the table, without .json or .md")
        kind.add_argument(
            "--seed", type=int, default=0, help="seed of the noise, or of the judge's clips"
        )
        add(kind)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="any checkpoint that ltx-sample accepts"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def _add_other_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vae", help="a checkpoint whose VAE is used, if the checkpoint has none")
    parser.add_argument("--text_encoder", help="a text encoder, if the checkpoint contains none")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="a folder, shapes, or emoji:DIR@SPLIT")
    parser.add_argument(
        "--height", type=_positive, default=256, help="clips are scaled and cropped to this"
    )
    parser.add_argument(
        "--width", type=_positive, default=256, help="clips are scaled and cropped to this"
    )
    parser.add_argument(
        "--num_frames", type=_positive, default=17, help="frames per clip, at most; cut to 8k+1"
    )
    parser.add_argument("--limit", type=_positive, help="largest number of clips, and of pictures")


def _add_vae(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_data(parser)
    parser.add_argument(
        "--frame_folders", action="store_true", help="each folder of pictures is a clip (DAVIS)"
    )
    parser.add_argument(
        "--decode_timestep", type=float, default=0.0, help="noise level of the latents"
    )
    parser.add_argument(
        "--batch_size", type=_positive, default=1, help="clips of the same length per batch"
    )
    parser.add_argument("--vgg", help="for LPIPS: weights of VGG16 (safetensors)")
    parser.add_argument("--lpips_heads", help="for LPIPS: weights of its linear heads")
    parser.add_argument("--i3d", help="for rFVD: weights of I3D (safetensors)")


def _add_transformer(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_other_networks(parser)
    _add_data(parser)


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_other_networks(parser)
    parser.add_argument("--config", help="sampling settings: of configs/sample, or a video's JSON")
    for name in ("height", "width", "num_frames", "num_inference_steps"):
        parser.add_argument(f"--{name}", type=_positive, help="replaces the value of the settings")
    for name in ("frame_rate", "guidance_scale"):
        parser.add_argument(f"--{name}", type=float, help="replaces the value of the settings")
    parser.add_argument(
        "--timesteps", nargs="+", type=float, help="replaces the times of a distilled model"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="groups of rows; default: all")
    parser.add_argument(
        "--prompts", type=_positive, help="prompts per group, instead of its default"
    )
    parser.add_argument("--batch_size", type=_positive, default=8, help="videos per batch")


def _add_emoji(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", help="as for ltx-sample; without one, the judge alone is measured"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    _add_other_networks(parser)
    parser.add_argument("--data", default="emoji:data/emoji", help="the data set: emoji:DIR")
    parser.add_argument("--networks", default="data/networks", help="from ltx-prepare networks")
    parser.add_argument("--fvd", action="store_true", help="measure FVD too, which takes longer")
    parser.add_argument("--samples", help="folder of the videos (default: beside the table)")
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", help="parts of the table; default: all"
    )
    parser.add_argument("--prompts", type=_positive, default=300, help="prompts per part")
    parser.add_argument(
        "--training_clips",
        type=_positive,
        default=1000,
        help="training clips of which samples might be copies",
    )
    for name in ("num_inference_steps", "height", "width", "num_frames"):
        parser.add_argument(f"--{name}", type=_positive, help="replaces the default")
    parser.add_argument("--guidance_scale", type=float, help="replaces the default")
    parser.add_argument("--batch_size", type=_positive, default=8, help="videos per batch")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clips", type=_positive, default=1000)
    parser.add_argument("--height", type=_positive, default=96)
    parser.add_argument("--width", type=_positive, default=96)
    parser.add_argument("--num_frames", type=_positive, default=25)
    parser.add_argument("--frame_rate", type=float, default=24.0)


def _run_vae(args: argparse.Namespace) -> Parts:
    from ltx_jax.checkpoints import perceptual
    from ltx_jax.checkpoints.load import load_checkpoint
    from ltx_jax.config import ExecutionConfig
    from ltx_jax.evaluate import autoencoder, clip_reader

    if bool(args.vgg) != bool(args.lpips_heads):
        raise ValueError("LPIPS needs both --vgg and --lpips_heads")
    lpips = perceptual.read_lpips(args.vgg, args.lpips_heads) if args.vgg else None
    features = perceptual.read_i3d(args.i3d) if args.i3d else None
    checkpoint = load_checkpoint(args.checkpoint)
    if checkpoint.vae is None:
        raise ValueError(f"{args.checkpoint} contains no VAE")
    execution = ExecutionConfig(dtype=args.dtype)
    reconstruct = autoencoder.reconstructor(
        checkpoint, checkpoint.vae, execution, time=args.decode_timestep, seed=args.seed
    )
    factor = checkpoint.vae.temporal_factor
    clip_format = clip_reader.ClipFormat(args.num_frames, args.height, args.width, factor)
    skipped: list[str] = []
    clips = clip_reader.read_clips(
        args.data, clip_format, limit=args.limit, frame_folders=args.frame_folders, skipped=skipped
    )
    rows = autoencoder.reconstruction_metrics(
        _count_clips(clips),
        reconstruct,
        batch_size=args.batch_size,
        lpips=lpips,
        features=features,
    )
    _warn(skipped)
    yield rows, {"checkpoint_hash": checkpoint.source_hash, "skipped": skipped}
    yield autoencoder.flat_colour_metrics(reconstruct, clip_format), {}


def _run_transformer(args: argparse.Namespace) -> Parts:
    from ltx_jax.evaluate import clip_reader, transformer
    from ltx_jax.inference.pipeline import LTXPipeline

    pipe = LTXPipeline.from_pretrained(
        args.checkpoint, args.text_encoder, vae=args.vae, dtype=args.dtype
    )
    clip_format = clip_reader.ClipFormat(
        args.num_frames, args.height, args.width, pipe.vae.temporal_factor
    )
    skipped: list[str] = []
    clips = clip_reader.read_clips(
        args.data, clip_format, limit=args.limit, captioned=True, skipped=skipped
    )
    rows = transformer.loss_rows(pipe, _count_clips(clips), seed=args.seed)
    _warn(skipped)
    yield rows, {"checkpoint_hash": pipe.checkpoint.source_hash, "skipped": skipped}


def _run_shapes(args: argparse.Namespace) -> Parts:
    from ltx_jax.checkpoints.load import own_settings
    from ltx_jax.config import load_sampling, sampling_options
    from ltx_jax.evaluate import autoencoder, metric_table, world_table
    from ltx_jax.inference.pipeline import LTXPipeline

    groups = list(world_table.ROWS) if args.rows is None else args.rows
    unknown = sorted(set(groups) - set(world_table.ROWS))
    if unknown:
        raise ValueError(
            f"--rows: there is no {', '.join(unknown)}; known: {' '.join(world_table.ROWS)}"
        )
    options, own = world_table.OPTIONS, own_settings(args.checkpoint)
    if args.config is not None:
        options = sampling_options(load_sampling(args.config))
    elif own is not None and own.timesteps is not None:
        options = own  # a distilled model takes its own steps alone
    names = ("height", "width", "num_frames", "num_inference_steps", "frame_rate", "guidance_scale")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.timesteps is not None:
        changes["timesteps"] = tuple(args.timesteps)
    options = dataclasses.replace(options, seed=args.seed, **changes)
    pipe = LTXPipeline.from_pretrained(
        args.checkpoint, args.text_encoder, vae=args.vae, dtype=args.dtype
    )
    reconstruct = autoencoder.reconstructor(pipe.checkpoint, pipe.vae, pipe.execution)
    about = {"checkpoint_hash": pipe.checkpoint.source_hash, **dataclasses.asdict(options)}
    with _progress() as progress:
        task = progress.add_task("")

        def count_progress(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(batch: Any, *arguments: Any, **more: Any) -> Any:
                result = function(batch, *arguments, **more)
                progress.advance(task, len(batch))
                return result

            return call

        benchmark = world_table.WorldBenchmark(
            count_progress(pipe),
            count_progress(reconstruct),
            pipe.vae.temporal_factor,
            options,
            args.batch_size,
        )
        for name in groups:
            group = world_table.ROWS[name]
            prompts = group.prompts if args.prompts is None else args.prompts
            progress.reset(task, total=group.videos * prompts, description=name)
            rows = group.measure(benchmark, prompts)
            metric_table.show(name, rows)
            yield rows, about


def _run_emoji(args: argparse.Namespace) -> Parts:
    from ltx_jax.evaluate import emoji_table, metric_table

    parts = list(emoji_table.PARTS) if args.parts is None else args.parts
    unknown = sorted(set(parts) - set(emoji_table.PARTS))
    if unknown:
        raise ValueError(
            f"--parts: there is no {', '.join(unknown)}; known: {' '.join(emoji_table.PARTS)}"
        )
    with _progress() as progress:
        task = progress.add_task("the judge")
        table, about = _emoji_table(args)

        def report(name: str, done: int, total: int) -> None:
            progress.update(task, description=name, completed=done, total=total)

        table = dataclasses.replace(table, report=report)
        for part in parts:
            rows = table.rows(part, args.prompts)
            if rows:
                metric_table.show(part, rows)
            yield rows, about


def _emoji_table(args: argparse.Namespace) -> tuple["EmojiTable", dict[str, Any]]:
    """Opens data set, judge and model; returns also the settings to store."""
    from ltx_jax.checkpoints import perceptual
    from ltx_jax.config import DataConfig
    from ltx_jax.data.emoji import Emoji
    from ltx_jax.evaluate import autoencoder, emoji_benchmark, emoji_retrieval, emoji_table
    from ltx_jax.inference.pipeline import LTXPipeline

    names = ("num_inference_steps", "height", "width", "num_frames", "guidance_scale")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options = dataclasses.replace(emoji_benchmark.OPTIONS, seed=args.seed, **changes)
    networks = Path(args.networks)
    weights = perceptual.read_efficientnet(networks / perceptual.EFFICIENTNET)
    i3d_params = perceptual.read_i3d(networks / perceptual.I3D) if args.fvd else None
    source = Emoji(args.data, DataConfig(), args.seed)
    embed = emoji_retrieval.Embedder(weights)
    gallery = emoji_retrieval.Gallery.make(
        source.catalogue, source.artwork, embed, networks / "emoji_gallery.npz"
    )
    benchmark = emoji_benchmark.EmojiBenchmark(
        source.catalogue, source.artwork, embed, gallery, options
    )
    training = emoji_benchmark.training_features(
        benchmark, args.training_clips, networks / "emoji_training.npz"
    )
    model, about = None, dataclasses.asdict(options)
    if args.checkpoint:
        pipe = LTXPipeline.from_pretrained(
            args.checkpoint, args.text_encoder, vae=args.vae, dtype=args.dtype
        )
        folder = Path(args.samples or f"{args.output or 'outputs/evaluate_emoji'}_samples")
        samples = emoji_benchmark.SampledVideos(pipe, options, folder, args.batch_size)
        samples.open(pipe.checkpoint.source_hash)
        reconstruct = autoencoder.reconstructor(pipe.checkpoint, pipe.vae, pipe.execution)
        model = emoji_table.EmojiModel(samples, reconstruct)
        about |= {"checkpoint_hash": pipe.checkpoint.source_hash}
    return emoji_table.EmojiTable(benchmark, training, model, i3d_params), about


def _run_judge(args: argparse.Namespace) -> Parts:
    from ltx_jax.evaluate import judge_accuracy

    size = judge_accuracy.ClipSize(args.num_frames, args.height, args.width, args.frame_rate)
    yield judge_accuracy.accuracy(args.clips, size, args.seed), {}


def _progress() -> "Progress":
    """A bar on stderr: what is done, how much of it, and the time left."""
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    return rich.progress.Progress(*columns, console=console, transient=True)


def _count_clips(clips: Iterator[Any]) -> Iterator[Any]:
    """Yields the clips, and shows their number on stderr."""
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
    """Lists the files that could not be used."""
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} clips are left out", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
