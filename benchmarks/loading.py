"""The loader: examples per second of every source, and how long training waits for them.

Data are made in a temporary folder. The waiting time is measured with the tiny configs: their steps
take milliseconds, so that no other training needs more batches per second. Means are large if other
processes keep the cores busy.
"""

import dataclasses
import itertools
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from unittest import mock

import grain  # noqa: F401  (so that no measurement includes its import)
import jax
import numpy as np

from benchmarks.harness import Report
from benchmarks.sizes import Scale
from ltx_jax import config
from ltx_jax.config import BucketConfig, DataConfig, TrainTransformer, TrainVAE
from ltx_jax.data import dataset, inputs, latent_cache, media, writing
from ltx_jax.data.loader import Batch, Loader
from ltx_jax.data.sources import Encoding, Example, StoredLatents
from ltx_jax.inference.encode_dataset import encode
from ltx_jax.runtime import sharding
from ltx_jax.training import loop
from ltx_jax.training.stage import stage_class
from ltx_jax.training.step import Trainer
from ltx_jax.world import render

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
CLIPS = 24  # of the folder and of each data set
SIZE = BucketConfig(25, 256, 256, batch_size=8)
LARGE = BucketConfig(121, 512, 768, batch_size=8)  # size in pixels of the stored latents
NONE = (("none", 1.0),)
WARM, STEPS = 100, 500  # training steps before the measurement, and in it


def make_clips(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Clips of 25 frames, as a folder of files and as a data set."""
    folder, stored = root / "folder", root / "clips"
    folder.mkdir()
    rows = []
    for i in range(CLIPS):
        clip = render.clip(i, num_frames=25, height=SIZE.height, width=SIZE.width)
        path = folder / f"{i}.mp4"
        writing.write_video(path, clip.frames, 24)
        path.with_suffix(".txt").write_text(clip.caption)
        medium = inputs.Stored(path.name, path.read_bytes())
        rows.append(dataset.clip_row(medium, [clip.caption], {}))
    shards = dataset.DatasetWriter(stored, dataset.CLIPS, dataset.clip_features(), media.FACTS, {})
    shards.write(0, rows)
    shards.finish(1)
    return folder, stored


def make_latents(root: pathlib.Path) -> pathlib.Path:
    """Stored latents and embeddings as in the released models: 128 channels, 4096 wide."""
    t, h, w = (LARGE.num_frames - 1) // 8 + 1, LARGE.height // 32, LARGE.width // 32
    size = (LARGE.num_frames, LARGE.height, LARGE.width)
    encoding = Encoding((size,), "none", "none", None, None, "none", "none", "none", None)
    shards = dataset.DatasetWriter(
        root / "latents",
        latent_cache.KIND,
        latent_cache.latent_features(128, 4096),
        latent_cache.INDEX,
        dataclasses.asdict(encoding),
    )

    def draw(*shape: int) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)

    stored = StoredLatents(
        mean=draw(t, h, w, 128),
        logvar=draw(t, h, w, 1),
        keyframes=draw(4, h, w, 129),
        keyframe_numbers=np.array([30, 60, 90, 120], np.int32),
        clips=draw(1, 2, h, w, 129),
        clip_numbers=np.array([8], np.int32),
    )
    example = Example("a caption", 24.0, latents=stored, embedding=draw(100, 4096))
    shards.write(0, (latent_cache.to_row(example, 0) for _ in range(CLIPS)))
    shards.finish(1)
    return root / "latents"


def speed(cfg: DataConfig) -> float:
    """Examples per second when each is read for the first time; the first batch does not count."""
    steps = CLIPS // cfg.sizes[0].batch_size
    batches = Loader(cfg, NONE, 0).batches(0, steps)
    next(batches)
    begin = time.perf_counter()
    count = sum(len(batch.captions) for batch in batches)
    return count / (time.perf_counter() - begin)


class Timed(Loader):
    """Records the waiting time for each batch."""

    waits: list[float] = []  # noqa: RUF012  (there is only one loader at a time)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The same batches."""
        batches = super().batches(first, last)
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            self.waits.append(time.perf_counter() - begin)
            if batch is None:
                return
            yield batch


def waiting(cfg: TrainVAE | TrainTransformer) -> dict[str, dict[str, float]]:
    """Trains, and measures the time of a step with its data, and the wait for these data."""
    patterns = cfg.flow.patterns if isinstance(cfg, TrainTransformer) else NONE
    loader = Timed(cfg.data, patterns, cfg.run.seed)
    Timed.waits = []
    mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
    stage = stage_class(cfg).open(cfg, mesh, loader=loader)
    trainer = Trainer(stage)
    state, marks, late = trainer.plan.make(), [], None
    with sharding.use_mesh(mesh):
        for batch in stage.batches(0, WARM + STEPS):
            state, metrics = trainer.step(state, batch)
            if late is not None:
                jax.block_until_ready(late)  # waits one step late, as the training loop does
            late = metrics["loss"]
            marks.append(time.perf_counter())
    steps, waits = np.diff(marks[WARM - 1 :]) * 1e3, np.array(Timed.waits[WARM:][:STEPS]) * 1e3
    return {
        "step ms": {"median": float(np.median(steps)), "mean": float(np.mean(steps))},
        "wait ms": {"median": float(np.median(waits)), "mean": float(np.mean(waits))},
    }


def loading(report: Report, scale: Scale) -> None:
    """Examples per second of every source; then how long two tiny stages wait for their batches."""
    del scale  # the sizes of the data do not depend on it
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        folder, clips = make_clips(root)
        sources = {
            "world, 25 x 256 x 256": DataConfig(buckets=(SIZE,)),
            "folder of MP4, 25 x 256 x 256": DataConfig(source=str(folder), buckets=(SIZE,)),
            "data set of MP4, 25 x 256 x 256": DataConfig(source=str(clips), buckets=(SIZE,)),
            "latents of 121 x 512 x 768": DataConfig(
                source=str(make_latents(root)), buckets=(LARGE,)
            ),
        }
        for (name, cfg), threads in itertools.product(sources.items(), (1, 2)):
            for reader in ("Grain", "threads"):
                hidden = {} if reader == "Grain" else {"grain": None}
                with mock.patch.dict(sys.modules, hidden):
                    rate = speed(dataclasses.replace(cfg, threads=threads))
                title = f"{name}, {reader}, threads: {threads}"
                report.add("loading", title, note=f"{rate:.4g} examples/s", speed=rate)

        stage = config.load(str(CONFIGS / "shapes_tiny_vae.py"), ["--run.output", str(root / "a")])
        short = dataclasses.replace(stage.run, steps=2, tensorboard=False)
        loop.train(dataclasses.replace(stage, run=short), lambda _: None)
        overrides = ["--vae", str(root / "a"), "--run.output", str(root / "b")]
        second = config.load(str(CONFIGS / "shapes_tiny_transformer.py"), overrides)
        encode(second, root / "tiny", examples=256, report=lambda _: None)
        cached = dataclasses.replace(second.data, source=str(root / "tiny"))
        for name, cfg in {
            "VAE on the world": stage,
            "transformer on the world, encoded live": second,
            "transformer on cached latents": dataclasses.replace(second, data=cached),
        }.items():
            times = waiting(cfg)
            step, wait = times["step ms"], times["wait ms"]
            note = (
                f"step {step['median']:.1f} ms (mean {step['mean']:.1f}), waits for data "
                f"{wait['median']:.3f} ms (mean {wait['mean']:.3f})"
            )
            report.add("loading", name, note=note, **times)
