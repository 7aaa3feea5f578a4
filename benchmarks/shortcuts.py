"""The effect of options that change the result a little, on the videos of a trained model:

  python -m benchmarks.shortcuts embedded:shapes
  python -m benchmarks.shortcuts runs/mine --prompt "a cat" "a dog" --text_encoder t5

Every option is compared with the exact form, the fast form in float32, on the same prompts and
noise. The change of the latents is relative, as a root mean square. The change by bfloat16, in
which models are usually sampled, is a scale for the others. Without --prompt, prompts are scenes of
the procedural world (for models that were trained on it), and the judge says how often a video
shows what its prompt says.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.headline import Watching
from ltx_jax import LTXPipeline, metrics
from ltx_jax.evaluate import autoencoder, metric_table
from ltx_jax.evaluate.metric_table import MetricRow
from ltx_jax.evaluate.world_table import WorldBenchmark, word_accuracy

EXACT = "exact"
# Arguments of the pipeline, and options of a call.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    EXACT: ({}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
    "float8 linears": ({"linears": "float8"}, {}),
    "int8 linears": ({"linears": "int8"}, {}),
    **{f"TeaCache {threshold}": ({}, {"teacache": threshold}) for threshold in (0.03, 0.05, 0.1)},
}


def measure(
    checkpoint: str, text_encoder: str | None, prompts: Sequence[str], batch_size: int
) -> tuple[list[MetricRow], dict[str, np.ndarray]]:
    """Metrics of every form, and its videos (b, t, h, w, 3)."""
    rows: list[MetricRow] = []
    latents: dict[str, np.ndarray] = {}
    videos: dict[str, np.ndarray] = {}
    for name, (form, options) in FORMS.items():
        form = {"dtype": "float32", "fast": True} | form
        pipe = LTXPipeline.from_pretrained(checkpoint, text_encoder, **form)
        pipe.programs = watching = Watching()
        sampled, decoded = [], []
        for first in range(0, len(prompts), batch_size):
            batch = list(prompts[first : first + batch_size])
            x = pipe(batch, output="latents", first_sample=first, **options)
            sampled.append(x)
            decoded.append(pipe.decode(x, first_sample=first))
        latents[name], videos[name] = np.concatenate(sampled), np.concatenate(decoded)
        if name == EXACT:
            continue
        axes = tuple(range(1, latents[EXACT].ndim))
        change = np.mean((latents[name] - latents[EXACT]) ** 2, axes)
        change = 100 * np.sqrt(change / np.mean(latents[EXACT] ** 2, axes))
        ratios = np.asarray(metrics.psnr(videos[name], videos[EXACT]))
        rows += [
            metric_table.mean(name, "change of the latents", change, "%"),
            MetricRow(name, "largest of these", float(change.max()), len(change), unit="%"),
            metric_table.mean(name, "PSNR against the exact video", ratios, "dB"),
        ]
        if computed := watching.computed():
            rows.append(metric_table.percentage(name, "steps computed", computed))
    return rows, videos


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shortcuts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="anything ltx-sample takes")
    parser.add_argument("--text_encoder", help="a T5 folder, if the checkpoint has none of its own")
    parser.add_argument("--prompt", nargs="+", help="in place of scenes of the procedural world")
    parser.add_argument("--scenes", type=int, default=32, help="number of scenes")
    parser.add_argument("--batch_size", type=int, default=8)
    out = Path(__file__).parent / "results" / "shortcuts"
    parser.add_argument("--out", type=Path, default=out, help="path without its ending")
    options = parser.parse_args(arguments)
    pipe = LTXPipeline.from_pretrained(options.checkpoint, options.text_encoder)
    reconstruct = autoencoder.reconstructor(pipe.checkpoint, pipe.vae, pipe.execution)
    benchmark = WorldBenchmark(pipe, reconstruct, pipe.vae.temporal_factor, pipe.options)
    scenes = [] if options.prompt else benchmark.draw_prompts(options.scenes)
    prompts = options.prompt or [one.caption for one in scenes]
    rows, videos = measure(options.checkpoint, options.text_encoder, prompts, options.batch_size)
    if scenes:
        truths = [one.triples for one in scenes]
        for name, clips in videos.items():
            rows += word_accuracy(name, [benchmark.detect(clip) for clip in clips], truths)
        rows.sort(key=lambda row: list(FORMS).index(row.subject))
    title = "Options that change the result a little"
    metric_table.show(title, rows)
    settings = {"checkpoint": options.checkpoint, **dataclasses.asdict(pipe.options)}
    print(*metric_table.write(options.out, title, settings, rows), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
