"""Measures whether videos follow the edges of their references, before and after training.

    python -m benchmarks.follow_references --lora runs/shapes_ic_lora

Samples held-out clips of the procedural world three times: by their captions alone, by captions and
edges with the checkpoint as it is, and with the adapter. Prints how far the edges of the samples
lie at the places of the clips' (`metrics.edge_agreement`). A checkpoint that has not learned to
follow copies its reference, so that the edges agree and nothing else does: the distance of the
colours (mean absolute difference of the clips' mean colours, of 255 levels) tells. Writes a contact
sheet: clip, reference, and the three samples.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ltx_jax import Condition, LTXPipeline, Reference
from ltx_jax.data import preprocessors, writing
from ltx_jax.data.contact_sheet import contact_sheet
from ltx_jax.metrics import edge_agreement
from ltx_jax.world import render


def edges_of(clip: np.ndarray) -> np.ndarray:
    """Where a clip has edges, (t, h, w)."""
    return preprocessors.canny(clip)[..., 0] > 0


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="embedded:shapes")
    parser.add_argument("--lora", help="an adapter that was trained to follow edges")
    parser.add_argument("--count", type=int, default=16, help="number of held-out clips")
    parser.add_argument("--num_frames", type=int, default=9)
    parser.add_argument("--output", default="outputs/follow_references")
    args = parser.parse_args()
    pipe = LTXPipeline.from_pretrained(args.checkpoint)
    shape = dict(num_frames=args.num_frames, height=96, width=96)
    clips = [render.clip(i, split="held_out", fps=24.0, **shape) for i in range(args.count)]
    prompts, rows = [clip.caption for clip in clips], [clip.frames for clip in clips]
    references = np.stack([preprocessors.canny(clip.frames) for clip in clips])
    followed: list[Condition | Reference] = [Reference(references)]
    ways: dict[str, list[Condition | Reference]] = {"caption alone": [], "reference": followed}
    if args.lora is not None:
        ways["reference and adapter"] = followed
    samples, scores = {}, {}
    for name, conditions in ways.items():
        if args.lora is not None and name == "reference and adapter":
            pipe.load_lora(args.lora)
        videos = pipe(prompts, conditions=conditions, frame_rate=24.0, **shape)
        agreements = [
            edge_agreement(edges_of(video), reference[..., 0] > 0)
            for video, reference in zip(videos, references, strict=True)
        ]
        colours = np.mean(videos, axis=(1, 2, 3)) - np.mean(rows, axis=(1, 2, 3))
        samples[name] = videos
        scores[name] = [float(np.nanmean(agreements)), float(np.abs(colours).mean())]
        print(f"{name}: edges agree {scores[name][0]:.3f}, colours differ {scores[name][1]:.1f}")
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agreement.json").write_text(json.dumps(scores, indent=2) + "\n")
    shown = [
        x
        for i in range(min(4, args.count))
        for x in (rows[i], references[i], *(v[i] for v in samples.values()))
    ]
    labels = [x for i in range(min(4, args.count)) for x in (prompts[i], "reference", *samples)]
    writing.write_image(folder / "sheet.png", contact_sheet(shown, labels))


if __name__ == "__main__":
    main()
