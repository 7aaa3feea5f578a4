"""Measures a model that was fitted to two clips: does each caption, and each first frame, give back
its clip?

    python -m benchmarks.two_clips --run runs/two_clips_transformer --clips data/two_clips

Prints a table in decibels and writes a contact sheet: clip, reconstruction, samples by caption and
by first frame.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ltx_jax import Condition, LTXPipeline
from ltx_jax.config import SamplingConfig
from ltx_jax.data import folder, writing
from ltx_jax.data.contact_sheet import contact_sheet
from ltx_jax.models.vae import VideoVAE


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit clips, in decibels."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def encode(pipe: LTXPipeline, clip: np.ndarray) -> np.ndarray:
    """Normalised latents (t, h, w, c) of a clip: the mode of the posterior."""
    model = VideoVAE(pipe.vae, pipe.execution)
    pixels = jnp.asarray(clip[None], jnp.float32) / 127.5 - 1
    apply = jax.jit(lambda params, x: model.apply({"params": params}, x, method="encode"))
    return np.asarray(pipe.statistics.normalize(apply(pipe.checkpoint.vae_params, pixels).mode()))[
        0
    ]


def main() -> None:
    """Reads the run and the clips, samples, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--clips", required=True)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheet", default="docs/two_clips.jpg")
    args = parser.parse_args()

    pipe = LTXPipeline.from_pretrained(args.run, dtype="float32")
    listing = folder.list_clips(args.clips)
    names = [Path(clip.path).stem for clip in listing]
    captions = [clip.caption for clip in listing]
    loaded = [folder.load_clip(c.path, args.frames, args.height, args.width) for c in listing]
    clips, rates = [frames for frames, _ in loaded], [rate for _, rate in loaded]

    def options(rate: float, seed: int = 0) -> SamplingConfig:
        return SamplingConfig(
            height=args.height,
            width=args.width,
            num_frames=args.frames,
            frame_rate=rate,
            num_inference_steps=args.steps,
            guidance_scale=1.0,
            stg_scale=0.0,
            image_cond_noise_scale=0.0,
            prepare_conditions=False,
            decode_timestep=0.0,
            decode_noise_scale=0.0,
            seed=seed,
        )

    def row(name: str, values: list[float]) -> None:
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)

    print(f"| dB against | {' | '.join(names)} |\n|---|" + "---|" * len(names))
    means = [np.broadcast_to(c.mean(0, keepdims=True), c.shape) for c in clips]
    stills = [np.broadcast_to(c[:1], c.shape) for c in clips]
    row("mean frame of the same clip", [psnr(a, b) for a, b in zip(clips, means, strict=True)])
    row("first frame repeated", [psnr(a, b) for a, b in zip(clips, stills, strict=True)])

    latents = [encode(pipe, clip) for clip in clips]
    decoded = [pipe.decode(z[None], options(r))[0] for z, r in zip(latents, rates, strict=True)]
    row("VAE reconstruction", [psnr(a, b) for a, b in zip(clips, decoded, strict=True)])

    by_caption = []
    for name, caption, rate in zip(names, captions, rates, strict=True):
        sample = pipe(caption, options(rate))[0]
        by_caption.append(sample)
        row(f"sampled by the caption of {name}", [psnr(clip, sample) for clip in clips])
    by_frame = []
    for name, clip, rate in zip(names, clips, rates, strict=True):
        first = Condition(clip[0], frame=0, strength=1.0)
        sample = pipe("", options(rate), conditions=[first])[0]
        by_frame.append(sample)
        row(f"empty caption, first frame of {name}", [psnr(clip, sample) for clip in clips])

    # Control: the right latents at the wrong places must give a bad video.
    rng = np.random.default_rng(0)
    shuffled = []
    for caption, clip, rate in zip(captions, clips, rates, strict=True):
        z = pipe(caption, options(rate), output="latents")
        flat = z.reshape(-1, z.shape[-1])
        mixed = flat[rng.permutation(len(flat))].reshape(z.shape)
        shuffled.append(psnr(clip, pipe.decode(mixed, options(rate))[0]))
    row("its own caption, sampled latents shuffled", shuffled)

    shown, labels = [], []
    for i, name in enumerate(names):
        shown += [clips[i], decoded[i], by_caption[i], by_frame[i]]
        labels += [f"{name}: clip", "VAE", "by its caption", "by its first frame"]
    writing.write_image(args.sheet, contact_sheet(shown, labels))
    print(f"wrote {args.sheet}")


if __name__ == "__main__":
    main()
