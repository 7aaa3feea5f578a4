"""What each part of the VAE's training does: one small VAE per variant, all with equal steps.

  python benchmarks/ablation.py CLIPS --steps 1000      # CLIPS: a folder of videos, any size

Each variant changes one thing in the full recipe. It is trained on three quarters of every clip and
on the procedural world. Then the last quarters, and scenes of the world that training never shows,
are reconstructed. The results are a table (JSON, Markdown) and a picture: originals, then the
reconstructions of every variant.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from ltx_jax import metrics  # noqa: E402
from ltx_jax.checkpoints.runs import load_run  # noqa: E402
from ltx_jax.config import (  # noqa: E402
    BlockConfig,
    DataConfig,
    DiscriminatorConfig,
    ExecutionConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainVAE,
    VAEConfig,
    VAELossConfig,
)
from ltx_jax.data import pixels, video, writing  # noqa: E402
from ltx_jax.data.folder import ENDINGS  # noqa: E402
from ltx_jax.models.vae import VideoVAE  # noqa: E402
from ltx_jax.training.loop import train  # noqa: E402
from ltx_jax.training.losses import haar_bands  # noqa: E402
from ltx_jax.world import render  # noqa: E402

FRAMES, SIDE = 17, 64
LEVEL = 0.05  # decode timestep; the noise that is added is half of it, as in sampling
HELD_OUT = 16  # scenes of the world

MODEL = VAEConfig(  # 16x16x8 pixels per latent, 64 channels
    encoder_blocks=(
        BlockConfig("compress_all_res"),
        BlockConfig("res_x"),
        BlockConfig("compress_all_res"),
        BlockConfig("res_x"),
        BlockConfig("compress_time_res", multiplier=1),
        BlockConfig("res_x"),
    ),
    decoder_blocks=(
        BlockConfig("res_x", inject_noise=True),
        BlockConfig("compress_all", multiplier=2, residual=True),
        BlockConfig("res_x", inject_noise=True),
        BlockConfig("compress_all", multiplier=2, residual=True),
        BlockConfig("res_x", inject_noise=True),
        BlockConfig("compress_time"),
        BlockConfig("res_x"),
    ),
    latent_channels=64,
    encoder_base_channels=32,
    decoder_base_channels=32,
    timestep_conditioning=True,
)
PIXEL = VAELossConfig(kl_start=100, kl_warmup=100)
DWT = dataclasses.replace(PIXEL, dwt_weight=1.0)
FULL = dataclasses.replace(DWT, gan_weight=0.1)

QUIET = dataclasses.replace(
    MODEL,
    decoder_blocks=tuple(dataclasses.replace(b, inject_noise=False) for b in MODEL.decoder_blocks),
)
PLAIN = dataclasses.replace(MODEL, timestep_conditioning=False)

VARIANTS: dict[str, tuple[VAEConfig, VAELossConfig]] = {
    "pixel": (MODEL, PIXEL),
    "pixel + DWT": (MODEL, DWT),
    "full: pixel + DWT + rGAN": (MODEL, FULL),
    "plain GAN in place of rGAN": (MODEL, dataclasses.replace(FULL, gan="single")),
    "full - noise injection": (QUIET, FULL),
    "full - denoising decoder": (PLAIN, dataclasses.replace(FULL, max_decode_time=0.0)),
}


def cut(clips: pathlib.Path, out: pathlib.Path) -> list[np.ndarray]:
    """Writes training clips below `out`, and returns the held-out ones: uint8 (t, h, w, 3)."""
    held_out = []
    for path in sorted(p for p in clips.rglob("*") if p.suffix.lower() in ENDINGS):
        frames, rate = video.read_video(path)
        if len(frames) < 4 * FRAMES:
            print(f"{path.name} has fewer than {4 * FRAMES} frames and is left out")
            continue
        border = len(frames) * 3 // 4
        for start in range(0, border - FRAMES + 1, FRAMES // 2):
            clip = pixels.resize_crop(frames[start : start + FRAMES], SIDE, SIDE)
            target = out / f"{path.stem}_{start:04}.mp4"
            if not target.exists():
                writing.write_video(target, clip, rate)
                target.with_suffix(".txt").write_text(path.stem.replace("_", " ") + "\n")
        for start in range(border, len(frames) - FRAMES + 1, FRAMES):
            held_out.append(pixels.resize_crop(frames[start : start + FRAMES], SIDE, SIDE))
    return held_out


def config(name: str, data: pathlib.Path, out: pathlib.Path, steps: int) -> TrainVAE:
    """A variant's run."""
    model, loss = VARIANTS[name]
    optim = OptimConfig(
        name="muon",
        peak_lr=6e-3,
        warmup_steps=50,
        decay="linear",
        decay_fraction=0.4,
        weight_decay=0.0,
        ema_decay=0.99,
    )
    disc = OptimConfig(peak_lr=4e-4, warmup_steps=20, b1=0.5, b2=0.9, weight_decay=0.0)
    return TrainVAE(
        model=model,
        loss=loss,
        execution=ExecutionConfig(dtype="bfloat16"),
        discriminator=DiscriminatorConfig(base_channels=32, max_channels=128, levels=3),
        disc_execution=ExecutionConfig(dtype="bfloat16"),
        data=DataConfig(
            mix=(SourceConfig("shapes"), SourceConfig(str(data))),
            num_frames=FRAMES,
            height=SIDE,
            width=SIDE,
            batch_size=4,
        ),
        optim=optim,
        disc_optim=disc,
        run=RunConfig(
            output=str(out / re.sub(r"\W+", "_", name)),
            steps=steps,
            log_every=20,
            save_every=200,
            keep=1,
            tensorboard=False,
        ),
    )


def reconstruct(run: str, clips: np.ndarray) -> np.ndarray:
    """Reconstructions by a run's averaged weights, as the sampler decodes: floats in [-1, 1]."""
    loaded = load_run(run)
    assert loaded.vae is not None
    assert loaded.statistics is not None
    module = VideoVAE(loaded.vae, ExecutionConfig(dtype=loaded.vae_dtype))
    statistics = loaded.statistics

    @jax.jit
    def program(params, frames, key):
        pixels = frames.astype(jnp.float32) / 127.5 - 1
        z = module.apply({"params": params}, pixels, method="encode").mean
        level = 0.5 * LEVEL if loaded.vae.timestep_conditioning else 0.0
        z = statistics.normalize(z)
        z = statistics.denormalize((1 - level) * z + level * jax.random.normal(key, z.shape))
        t = jnp.full(len(frames), LEVEL)
        return jnp.clip(module.apply({"params": params}, z, t, method="decode"), -1, 1)

    parts = [
        np.asarray(program(loaded.vae_params, clips[i : i + 4], jax.random.key(i)))
        for i in range(0, len(clips), 4)
    ]
    return np.concatenate(parts)


def fine_energy(clips: np.ndarray) -> np.ndarray:
    """Energy of the detail bands of one Haar level, per clip."""
    details = haar_bands(jnp.asarray(clips), 1)[:-1]
    return np.asarray(sum(jnp.sum(band**2, axis=(1, 2, 3, 4)) for band in details))


def compare(clips: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    """Metrics of reconstructions, averaged over the clips."""
    originals = clips.astype(np.float32) / 127.5 - 1
    return {
        "psnr": float(jnp.mean(metrics.psnr(decoded, originals))),
        "ssim": float(jnp.mean(metrics.ssim(decoded, originals))),
        "fine": float(np.sum(fine_energy(decoded)) / np.sum(fine_energy(originals))),
    }


def accuracy(log: list[str]) -> float | None:
    """The discriminator's accuracy, averaged over the last quarter of the run's log."""
    values = [float(x) for line in log for x in re.findall(r"disc_accuracy ([\d.]+)", line)]
    return float(np.mean(values[-max(len(values) // 4, 1) :])) if values else None


def markdown(rows: dict[str, dict]) -> Iterator[str]:
    """The table's lines."""
    yield "| variant | PSNR, clips | SSIM | fine energy | PSNR, world | SSIM | fine energy | D |"
    yield "|---" * 8 + "|"
    for name, row in rows.items():
        cells = [name]
        for kind in ("clips", "world"):
            f = row[kind]
            cells += [f"{f['psnr']:.2f} dB", f"{f['ssim']:.4f}", f"{f['fine']:.2f}"]
        cells.append("" if row["accuracy"] is None else f"{row['accuracy']:.2f}")
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    """Trains the variants, or continues their runs, and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/ablation"))
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results")
    arguments = parser.parse_args()
    data = arguments.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    real = np.stack(cut(arguments.clips, data))
    world = np.stack(
        [
            render.clip(i, split="held_out", num_frames=FRAMES, height=SIDE, width=SIDE).frames
            for i in range(HELD_OUT)
        ]
    )
    examples = [real[0][None], real[len(real) // 2][None], world[:1]]
    rows: dict[str, dict] = {}
    strips = [np.concatenate([clip[0, :: FRAMES // 3] for clip in examples])]
    for name in arguments.only:
        cfg = config(name, data, arguments.out, arguments.steps)
        folder = pathlib.Path(cfg.run.output)
        file = folder.with_suffix(".log")
        log = file.read_text().splitlines() if file.exists() else []

        def report(line: str, log: list[str] = log, file: pathlib.Path = file) -> None:
            print(line, flush=True)
            log.append(line)
            file.write_text("\n".join(log) + "\n")

        train(cfg, report)
        rows[name] = {
            kind: compare(clips, reconstruct(cfg.run.output, clips))
            for kind, clips in (("clips", real), ("world", world))
        }
        rows[name]["accuracy"] = accuracy(log)
        decoded = [reconstruct(cfg.run.output, clip)[0] for clip in examples]
        bytes_ = [np.round((clip[:: FRAMES // 3] + 1) * 127.5).astype(np.uint8) for clip in decoded]
        strips.append(np.concatenate(bytes_))
        print(name, rows[name], flush=True)
    result = {"steps": arguments.steps, "held out": [len(real), len(world)], "rows": rows}
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "ablation.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.results / "ablation.md").write_text("\n".join(markdown(rows)) + "\n")
    sheet = np.concatenate([np.concatenate(list(strip), axis=1) for strip in strips])
    writing.write_image(arguments.out / "ablation.png", sheet)
    print("\n".join(markdown(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
