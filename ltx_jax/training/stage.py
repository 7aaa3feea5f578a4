"""The interface between one kind of training and the generic training code.

A stage consists of a subclass of `Stage`, which holds the networks, data, loss and validation, and
of a configuration class, whose `stage` names that subclass. State, step, loop, reports, checkpoints
and planning work with any stage.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.run_config import StoredBase
from ltx_jax.config import BucketConfig, TrainConfig
from ltx_jax.data.sources import Encoding
from ltx_jax.runtime.lazy import load_named
from ltx_jax.training.optim import MAIN, Optimizer
from ltx_jax.training.state import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossValue:
    """The result of a stage's loss for one batch.

    `jax.eval_shape` also fills it with shapes, so its fields are not typed as arrays.

    Attributes:
      loss: scalar that the main optimiser minimises. Parameters that another optimiser trains must
        be constants in it (`jax.lax.stop_gradient`).
      metrics: scalars to report; NaN for a metric that has no value in this step.
      statistics: the new running statistics.
      others: for each other optimiser, by name, the scalar that it minimises. Parameters that this
        optimiser does not train must be constants in it.
    """

    loss: Any
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    statistics: Any = dataclasses.field(default_factory=dict)
    others: dict[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class BatchSource(Protocol):
    """The source of a stage's examples, such as a `Loader`.

    Attributes:
      encoding: how stored latents were encoded; None if the batches are pixels.
    """

    encoding: Encoding | None

    def batches(self, first: int, last: int) -> Iterator[Any]:
        """This process's examples for the steps from `first` up to, but excluding, `last`: each a
        `Batch`, if the stage does not read another kind."""
        ...


class LoggedVideo(NamedTuple):
    """A video or picture that a validation reports."""

    frames: Any  # uint8 (t, h, w, 3)
    frame_rate: float


@dataclasses.dataclass(frozen=True)
class Validation:
    """The results of a validation. The first scalar is the loss: lower is better."""

    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    videos: dict[str, LoggedVideo] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Any] = dataclasses.field(default_factory=dict)  # of arrays of values


class InitialWeights(NamedTuple):
    """The weights that a run takes from another checkpoint, instead of initialising them.

    Attributes:
      params: by part (the top-level keys of the stage's parameters); missing parts are initialised
        at random.
      configs: pairs of a network's configuration in the checkpoint and in the run.
      statistics: initial running statistics; None takes those of the stage.
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
      cfg: the argument.
      mesh: the argument.
      frozen: untrained weights that the loss needs (LPIPS, a teacher, the network of an adapter),
        by name. Arrays that lie on the mesh stay as they are; others are replicated over it.
      vae: the frozen VAE that is saved with the run; None if there is none.
      base: the checkpoint that an adapter belongs to. It is named in the run, not copied into it;
        None if the run trains no adapter.
      initial: the weights that an adapter begins with instead of an initialisation, as part of the
        parameters.
    """

    frozen: Mapping[str, Any] = {}
    initial: Mapping[str, Any] = {}
    vae: Checkpoint | None = None
    base: StoredBase | None = None

    def __init__(self, cfg: TrainConfig, mesh: Mesh):
        self.cfg, self.mesh = cfg, mesh

    @classmethod
    @abc.abstractmethod
    def open(cls, cfg: Any, mesh: Mesh, *, loader: BatchSource | None = None) -> "Stage":
        """Makes the stage with its data and everything else that training needs.

        Args:
          cfg: the configuration of the run.
          mesh: the devices to run on.
          loader: source of examples that replaces the one of `cfg.data`.

        Raises:
          ValueError: if data, networks and settings do not fit each other.
        """

    @classmethod
    @abc.abstractmethod
    def describe(cls, cfg: Any, mesh: Mesh) -> "Stage":
        """Makes the stage without its data and without the weights of frozen networks: enough to
        compile its step, even for devices that this machine does not have.

        Raises:
          ValueError: if networks and settings do not fit each other.
        """

    @abc.abstractmethod
    def init(self, key: Array) -> dict[str, Any]:
        """Initialises the parameters, with the names of their logical axes."""

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimisers by name.

        An optimiser that is named after a top-level key of the parameters trains that part; `MAIN`
        trains all others. `MAIN` comes first; most stages have no other optimiser.
        """
        return {MAIN: Optimizer.of(self.cfg.optim, self.cfg.run.steps)}

    def first_statistics(self) -> dict[str, Any]:
        """The running statistics before the first step; {} if there are none."""
        return {}

    @abc.abstractmethod
    def abstract_batch(self, bucket: BucketConfig) -> Any:
        """Shapes (with shardings) of a bucket's batches; of the largest one if they differ."""

    @abc.abstractmethod
    def batches(self, first: int, last: int) -> Iterator[Any]:
        """The batches for the steps from `first` up to, but excluding, `last`, on the mesh.

        A batch depends only on its step, so that a resumed run gets the same batches.
        """

    @abc.abstractmethod
    def tokens(self, batch: Any) -> int:
        """How many latent voxels the networks process for a batch (arrays or shapes)."""

    @abc.abstractmethod
    def loss(
        self, params: Any, state: TrainState, batch: Any, frozen: Any, key: Array
    ) -> LossValue:
        """The loss of a batch, a mean over its examples; it is traced into the compiled step.

        Args:
          params: the parameters to differentiate with respect to.
          state: the training state, for its running statistics and its count of updates.
          batch: a batch from `batches`, or a micro-batch of it.
          frozen: the weights of `self.frozen`, on the devices.
          key: random key of this step.
        """

    def flop_stage(self, step: int) -> "Stage":
        """The stage whose loss is traced to count the operations of a step (from 1). It is another
        stage than this one if some operations of this loss should not be counted."""
        del step
        return self

    @abc.abstractmethod
    def validate(self, state: TrainState) -> Validation:
        """Metrics and videos of a state, always on the same clips."""

    def latent_statistics(self, state: TrainState) -> dict[str, Any]:
        """Statistics of the latents to store with the weights; {} if there are none."""
        del state
        return {}

    def initial_weights(self, checkpoint: Checkpoint) -> InitialWeights:
        """The weights to start from, out of another checkpoint (`run.init_from`).

        Raises:
          ValueError: if the checkpoint has nothing for this stage.
        """
        raise ValueError(
            f"--run.init_from {checkpoint.metadata.get('run', '')}: a {type(self).__name__} cannot "
            "start from another checkpoint: leave init_from out"
        )

    def derived_weights(self) -> InitialWeights:
        """The weights to start from without `run.init_from`, as far as they are not random."""
        return InitialWeights({}, ())

    def compiler_options(self) -> dict[str, Any] | None:
        """The XLA compiler options for the step."""
        return None


def stage_class(cfg: TrainConfig) -> type[Stage]:
    """Looks up the `Stage` subclass that the configuration names.

    Raises:
      ValueError: if there is no such class.
    """
    return load_named(cfg.stage, f"{type(cfg).__name__}.stage")
