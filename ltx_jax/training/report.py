"""Reports the metrics of a run to the log, TensorBoard and Weights & Biases."""

import contextlib
import dataclasses
import importlib.util
import io
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from ltx_jax.config import TrainConfig
from ltx_jax.training.flops import peak_flops
from ltx_jax.training.process import is_first
from ltx_jax.training.stage import LoggedVideo, Validation
from ltx_jax.training.step import Work


class Reporter:
    """Reports the metrics of steps and validations, and the speed of training.

    Metrics that are NaN have no value at this step and are left out. The log shows only metrics
    without a "/" in their name.

    Only the first of several processes reports.

    Args:
      cfg: the whole configuration.
      folder: the run's folder.
      first: number of steps taken before the run was started or resumed now.
      log: called with each line of the log.
      clock: the time in seconds since an arbitrary moment; never goes back.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        folder: epath.Path,
        first: int,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._cfg, self._log, self._begun = cfg.run, log, first + 1
        self._sinks = _sinks(cfg, folder, first, log) if is_first() else []
        devices = jax.devices()
        peak = peak_flops(devices[0].device_kind)
        self._peak = None if peak is None else peak * len(devices)
        self._clock = clock
        self._tally: _Tally | None = None

    def step(self, done: int, metrics: Mapping[str, Any], work: Work, waited: float) -> None:
        """Counts a step, and reports it if a report is due.

        Args:
          done: number of steps taken, including this one.
          metrics: scalars of this step, on devices; fetched only if they are reported.
          work: tokens and operations of the step.
          waited: seconds that the step waited for its data.
        """
        if self._tally is not None:
            self._tally.count(work, waited)
        due = done % self._cfg.log_every == 0 or done in (self._begun, self._cfg.steps)
        if not due:
            return
        values = {name: float(x) for name, x in jax.device_get(dict(metrics)).items()}
        speed, text = {}, ""
        if self._tally is not None:  # the first step is not timed, since it compiles
            speed = self._tally.read(self._clock(), self._peak)
            text = _speed_line(speed, self._cfg.steps - done)
        self._tally = _Tally(self._clock())
        line = _numbers({name: x for name, x in values.items() if not name.startswith("rejected")})
        if values.get("rejected"):
            line += f"  rejected {values['rejected']:.0f} steps (not finite)"
        self._log(f"step {done}/{self._cfg.steps}  {line}{text}")
        self._scalars(done, "train", values)
        self._scalars(done, "speed", speed)

    def validation(self, done: int, results: Validation) -> None:
        """Reports a validation."""
        self._log(f"step {done}/{self._cfg.steps}  {_numbers(results.scalars)}")
        scalars = {name.removeprefix("val_"): x for name, x in results.scalars.items()}
        self._scalars(done, "validation", scalars)
        for name, video in results.videos.items():
            for sink in self._sinks:
                sink.video(done, f"validation/{name}", video)
        for name, values in results.histograms.items():
            for sink in self._sinks:
                sink.histogram(done, f"validation/{name}", np.asarray(values))

    def _scalars(self, done: int, group: str, values: Mapping[str, float]) -> None:
        named = {f"{group}/{name}": x for name, x in values.items() if not math.isnan(x)}
        for sink in self._sinks:
            sink.scalars(done, named)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time inside the context from the time of the steps."""
        begin = self._clock()
        yield
        if self._tally is not None:
            self._tally.begin += self._clock() - begin

    def close(self) -> None:
        """Flushes and closes TensorBoard and Weights & Biases."""
        for sink in self._sinks:
            sink.close()


@dataclasses.dataclass
class _Tally:
    """Sums up the work since the time `begin`."""

    begin: float
    steps: int = 0
    tokens: int = 0
    flop: float = 0.0
    waited: float = 0.0

    def count(self, work: Work, waited: float) -> None:
        self.steps += 1
        self.tokens += work.tokens
        self.flop += work.flop
        self.waited += waited

    def read(self, now: float, peak: float | None) -> dict[str, float]:
        seconds = max(now - self.begin, 1e-9)
        speed = {
            "steps_per_second": self.steps / seconds,
            "tokens_per_second": self.tokens / seconds,
            "data_share": min(self.waited / seconds, 1.0),
        }
        if peak is not None:
            speed["mfu"] = self.flop / seconds / peak
        return speed


def _speed_line(speed: Mapping[str, float], steps_left: int) -> str:
    parts = [
        f"{speed['steps_per_second']:.3g} steps/s",
        f"{speed['tokens_per_second']:.3g} tokens/s",
    ]
    if "mfu" in speed:
        parts.append(f"MFU {speed['mfu']:.1%}")
    parts.append(f"data {speed['data_share']:.0%}")
    parts.append(f"{_duration(steps_left / speed['steps_per_second'])} left")
    return "  " + "  ".join(parts)


def _numbers(values: Mapping[str, float]) -> str:
    """Formats the loss, then the other metrics that are not NaN and have no "/" in their name."""
    rest = sorted(values.keys() - {"loss"})
    others = [name for name in rest if "/" not in name and not math.isnan(values[name])]
    names = [*(["loss"] if "loss" in values else []), *others]
    return "  ".join(f"{name} {values[name]:.6g}" for name in names)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def animate(video: LoggedVideo) -> bytes:
    """Encodes a looping GIF, the only video format that TensorBoard shows; a PNG if one frame."""
    images = [Image.fromarray(frame) for frame in np.asarray(video.frames)]
    file = io.BytesIO()
    if len(images) == 1:
        images[0].save(file, "PNG")
    else:
        each = round(1000 / video.frame_rate)  # milliseconds; the format rounds them to tens
        images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=each, loop=0)
    return file.getvalue()


class _TensorBoard:
    def __init__(self, folder: epath.Path, first: int):
        import tensorboardX

        # A resumed run repeats the steps after its last checkpoint, so their old events are purged.
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=first + 1)

    def scalars(self, done: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, done)

    def histogram(self, done: int, name: str, values: np.ndarray) -> None:
        self._writer.add_histogram(name, values, done)

    def video(self, done: int, name: str, video: LoggedVideo) -> None:
        # Not with add_video, which silently writes nothing if moviepy is missing.
        from tensorboardX.proto.summary_pb2 import (
            Summary,  # pyright: ignore[reportAttributeAccessIssue]
        )

        height, width, colours = video.frames.shape[1:]
        image = Summary.Image(
            height=height,
            width=width,
            colorspace=colours,
            encoded_image_string=animate(video),
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._writer.file_writer.add_summary(summary, done)  # pyright: ignore[reportOptionalMemberAccess]

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, cfg: TrainConfig, folder: epath.Path):
        import wandb  # pyright: ignore[reportMissingImports]  # the tracking extra

        # A resumed run continues the same Weights & Biases run.
        file = folder / "wandb_id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=cfg.run.wandb,
            name=folder.name,
            id=file.read_text(),
            resume="allow",
            config=dataclasses.asdict(cfg),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, done: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": done})

    def histogram(self, done: int, name: str, values: np.ndarray) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run.log({name: wandb.Histogram(values.tolist()), "step": done})  # over the channels

    def video(self, done: int, name: str, video: LoggedVideo) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  # the tracking extra

        if len(video.frames) == 1:
            media: Any = wandb.Image(np.asarray(video.frames[0]))
        else:
            media = wandb.Video(io.BytesIO(animate(video)), format="gif")
        self._run.log({name: media, "step": done})

    def close(self) -> None:
        self._run.finish()


def _sinks(
    cfg: TrainConfig, folder: epath.Path, first: int, log: Callable[[str], None]
) -> list[_TensorBoard | _WeightsAndBiases]:
    sinks: list[Any] = []
    if cfg.run.tensorboard and _installed("tensorboardX"):
        sinks.append(_TensorBoard(folder / "tensorboard", first))
    elif cfg.run.tensorboard:
        log("TensorBoard is off: it needs tensorboardX, which is not installed")
    if cfg.run.wandb is not None:
        sinks.append(_WeightsAndBiases(cfg, folder))
    return sinks


def check_installed(cfg: TrainConfig) -> None:
    """Checks that the reporting packages that the configuration needs are installed.

    Raises:
      ValueError: if `run.wandb` is set and Weights & Biases is not installed.
    """
    if cfg.run.wandb is not None and not _installed("wandb"):
        raise ValueError(
            "--run.wandb needs Weights & Biases, which is not installed: pip install wandb, or "
            "leave it out"
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
