"""A third stage: what its run is to the rest of the project, and what it inherits."""

import contextlib
import dataclasses
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_stages import load, one_device, tiny_vae

from ltx_jax.checkpoints import keys, run_config, runs
from ltx_jax.checkpoints.load import load_checkpoint, load_upsampler
from ltx_jax.config import (
    DataConfig,
    DistributedConfig,
    ExecutionConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    UpsamplerConfig,
)
from ltx_jax.export import export
from ltx_jax.pixels import from_bytes
from ltx_jax.runtime import sharding
from ltx_jax.training.clip_stage import ClipStage
from ltx_jax.training.frozen_vae import describe_frozen_vae
from ltx_jax.training.stage import LossValue
from ltx_jax.training.state import TrainState
from ltx_jax.training.step import Trainer
from ltx_jax.training.validation_clips import read_validation_clips


@dataclasses.dataclass(frozen=True)
class TrainEnlarger(TrainConfig):
    stage: ClassVar[str] = f"{__name__}:BrightnessStage"

    model: UpsamplerConfig
    execution: ExecutionConfig = ExecutionConfig()
    data: DataConfig = DataConfig(num_frames=5, height=16, width=16, batch_size=2)
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig(validation_clips=2)
    mesh: MeshConfig = MeshConfig(data=1)
    distributed: DistributedConfig = DistributedConfig()


class BrightnessStage(ClipStage):
    """Learns the mean of all clips, times a frozen number."""

    frozen = types.MappingProxyType({"times": np.float32(3.0)})

    @classmethod
    def open(cls, cfg, mesh, *, loader=None):
        return cls(cfg, mesh, tiny_vae().vae, loader)

    describe = open

    def init(self, key):
        return {"mean": jnp.zeros(())}

    def loss(self, params, state, batch, frozen, key):
        error = frozen["times"] * jnp.mean(from_bytes(batch["frames"])) - params["mean"]
        return LossValue(jnp.square(error), {"error": error})


@pytest.fixture
def cfg(tmp_path):
    model = UpsamplerConfig(in_channels=4, mid_channels=32, num_blocks_per_stage=1)
    return TrainEnlarger(model, run=RunConfig(output=str(tmp_path / "run"), validation_clips=2))


@pytest.fixture
def params(cfg):
    """Weights that tell each tensor and each of its axes apart."""
    shapes = sharding.unbox(keys.upsampler_boxed(cfg.model))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def test_the_run_of_an_upsampler_is_one_and_is_exported(cfg, params, tmp_path):
    with contextlib.closing(runs.Run(cfg)) as run:
        run.begin()
        parts = {"params": jax.tree.map(jnp.zeros_like, params), "ema": params}
        run.save(1, {name: {"upsampler": tree} for name, tree in parts.items()})
    assert run_config.read_config(cfg.run.output) == cfg
    [file] = export(cfg.run.output, tmp_path / "out")
    assert file.name == "upsampler.safetensors"
    for source in (cfg.run.output, file):
        config, loaded = load_upsampler(source)
        assert config == cfg.model
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert load_checkpoint(cfg.run.output).transformer is None
    half = load_upsampler(cfg.run.output, dtype="bfloat16")[1]
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def test_the_run_of_another_network_is_no_upsampler(tmp_path):
    run_config.write_config(tmp_path, load("vae"))
    with pytest.raises(ValueError, match="is a run that trains no latent upsampler"):
        load_upsampler(tmp_path)


def test_a_stage_on_clips_needs_its_loss_and_nothing_else(cfg):
    stage = BrightnessStage.open(cfg, one_device())
    trainer = Trainer(stage)
    state: TrainState = trainer.plan.make()
    validation = stage.validate(state)
    clips = read_validation_clips(cfg.run, cfg.data).frames
    error = 3 * np.mean(clips / 127.5 - 1)
    assert list(validation.scalars) == ["val_loss", "val_error"]
    # Rounding of a mean in float32.
    np.testing.assert_allclose(validation.scalars["val_error"], error, rtol=1e-5)
    np.testing.assert_allclose(validation.scalars["val_loss"], error**2, rtol=1e-5)
    batch = {"frames": jnp.asarray(clips)}
    assert trainer.trace(stage.abstract_batch(cfg.data.sizes[0])) is not None
    with sharding.use_mesh(stage.mesh):
        state, metrics = trainer.step(state, batch)
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-5)
    assert stage.tokens(batch) == 2 * 3 * 4 * 4


def test_clips_that_the_vae_cannot_encode_are_refused(cfg):
    odd = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, height=18))
    with pytest.raises(ValueError, match="18"):
        BrightnessStage.open(odd, one_device())


def test_a_frozen_vae_is_described_by_the_shapes_of_its_weights(tmp_path):
    run_config.write_config(tmp_path, load("vae"))
    described = describe_frozen_vae(str(tmp_path), 4)
    assert described.vae == load("vae").model

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)

    assert shapes(described.vae_params) == shapes(tiny_vae().vae_params)
