"""What a stage of training is: the contract between a kind of training and all that is generic.

A stage is one subclass of `Stage`, which holds its networks, its data, its loss and its validation,
and one configuration, whose `stage` names that class. State, step, loop, reports, checkpoints and
plans take any of them.
"""

import abc
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.config import BucketConfig, TrainConfig
from ltx_jax.data.loader import Batch
from ltx_jax.data.sources import Encoding
from ltx_jax.training.optim import MAIN, Optimizer
from ltx_jax.training.state import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossValue:
    """What a loss gives for a batch.

    The same tree also carries shapes, so fields are not typed as arrays.

    Attributes:
      loss: scalar that the main optimiser lowers. Parameters with an optimiser of their own are
        constants in it (`jax.lax.stop_gradient`).
      metrics: scalars to report; NaN where one has nothing to say.
      statistics: the new running statistics.
      others: scalars that each other optimiser lowers, by its name; there, all other parameters are
        constants.
    """

    loss: Any
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    statistics: Any = dataclasses.field(default_factory=dict)
    others: dict[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class BatchSource(Protocol):
    """Where a stage's examples come from; a `Loader` is one.

    Attributes:
      encoding: what made the latents; None where batches are pixels.
    """

    encoding: Encoding | None

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """This process's examples of the steps from `first` up to, and without, `last`."""
        ...


class LoggedVideo(NamedTuple):
    """A video, or a picture, that a validation shows."""

    frames: Any  # uint8 (t, h, w, 3)
    frame_rate: float


@dataclasses.dataclass(frozen=True)
class Validation:
    """The results of a validation. The first scalar is the one to lower."""

    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    videos: dict[str, LoggedVideo] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Any] = dataclasses.field(default_factory=dict)  # of arrays of values


class InitialWeights(NamedTuple):
    """What a stage takes from a checkpoint that it starts from.

    Attributes:
      params: by their names at the top of the stage's parameters; parts that are absent are drawn.
      configs: pairs of networks' configurations, in the checkpoint and in the run.
      statistics: first running statistics; None leaves those of the stage.
    """

    params: dict[str, Any]
    configs: tuple[tuple[Any, Any], ...]
    statistics: Any = None


class Stage(abc.ABC):
    """One kind of training: networks, data, loss and validation.

    Args:
      cfg: the whole configuration of the run.
      mesh: the devices that it runs on.

    Attributes:
      cfg: as given.
      mesh: as given.
      frozen: weights that the loss uses and nothing trains (LPIPS, a teacher), by name, on the
        host. The loss gets them on every device.
      vae: the frozen VAE that is kept with the run; None for none.
    """

    frozen: Mapping[str, Any] = {}
    vae: Checkpoint | None = None

    def __init__(self, cfg: TrainConfig, mesh: Mesh):
        self.cfg, self.mesh = cfg, mesh

    @classmethod
    @abc.abstractmethod
    def open(cls, cfg: Any, mesh: Mesh, *, loader: BatchSource | None = None) -> "Stage":
        """Opens the data, and all else that the stage needs to train.

        Args:
          cfg: of the run.
          mesh: to run on.
          loader: of examples, in place of that of `cfg.data`.

        Raises:
          ValueError: if data, networks and settings do not fit each other.
        """

    @classmethod
    @abc.abstractmethod
    def describe(cls, cfg: Any, mesh: Mesh) -> "Stage":
        """The stage without its data and the weights of frozen networks: enough to compile its
        step, also for devices that are not here.

        Raises:
          ValueError: if networks and settings do not fit each other.
        """

    @abc.abstractmethod
    def init(self, key: Array) -> dict[str, Any]:
        """Draws the parameters, with the names of their logical axes."""

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimisers by name.

        One that is named like a part at the top of the parameters trains that part, `MAIN` all
        others. `MAIN` comes first, and is the only one of most stages.
        """
        return {MAIN: Optimizer.of(self.cfg.optim, self.cfg.run.steps)}

    def first_statistics(self) -> dict[str, Any]:
        """Running statistics before the first step; {} for none."""
        return {}

    @abc.abstractmethod
    def abstract_batch(self, bucket: BucketConfig) -> Any:
        """Shapes of a batch of a bucket, on the mesh: the largest one, where batches differ."""

    @abc.abstractmethod
    def batches(self, first: int, last: int) -> Iterator[Any]:
        """The batches of the steps from `first` up to, and without, `last`, on the mesh.

        They depend on the step alone, so that a run that goes on gets the same ones.
        """

    @abc.abstractmethod
    def tokens(self, batch: Any) -> int:
        """How many latent voxels of a batch, or of its shapes, the networks process."""

    @abc.abstractmethod
    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """The loss of a batch, a mean over its examples; a part of the compiled step.

        Args:
          params: those to differentiate by.
          state: the rest of what the loss depends on: running statistics, the count of updates.
          batch: as `batches` gives it, or a micro-batch of it.
          frozen: the weights of `self.frozen`.
          key: of this step.
        """

    def counted(self, step: int) -> "Stage":
        """The stage whose loss has the operations to count for a step (from 1); this one, if all
        that its loss computes counts in every step."""
        del step
        return self

    @abc.abstractmethod
    def validate(self, state: TrainState) -> Validation:
        """Metrics and videos of a state; of the same clips every time."""

    def latent_statistics(self, state: TrainState) -> dict[str, Any]:
        """Statistics of the latents to store beside the weights; {} for none."""
        del state
        return {}

    def initial_weights(self, checkpoint: Checkpoint) -> InitialWeights:
        """What to start from of another checkpoint (`run.init_from`).

        Raises:
          ValueError: if the checkpoint has nothing for this stage.
        """
        raise ValueError(
            f"--run.init_from {checkpoint.metadata.get('run', '')}: a {type(self).__name__} starts "
            "from no other checkpoint"
        )

    def compiler_options(self) -> dict[str, Any] | None:
        """XLA's options for the compiled step."""
        return None


def stage_class(cfg: TrainConfig) -> type[Stage]:
    """The class that trains a configuration.

    Raises:
      ValueError: if the configuration names no such class.
    """
    module, _, name = cfg.stage.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{type(cfg).__name__}.stage = {cfg.stage!r}: {error}") from error
