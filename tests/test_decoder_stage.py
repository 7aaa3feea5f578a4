"""Training of a smaller decoder: what is frozen, what is matched, exact resumption, meshes."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK
from tiny_checkpoint import write_exported
from tiny_stages import (
    CONFIGS,
    QUICK_MESH,
    assert_eight_devices_train_as_one,
    load,
    one_device,
)

from ltx_jax import config
from ltx_jax.checkpoints import keys, official_config
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.config import DiscriminatorConfig, TrainDecoder
from ltx_jax.export import export
from ltx_jax.models.vae import VideoVAE
from ltx_jax.runtime import sharding
from ltx_jax.training import loop, warm_start
from ltx_jax.training.flops import count_flop
from ltx_jax.training.step import Trainer
from ltx_jax.training.vae.decoder_loss import feature_loss
from ltx_jax.training.vae.decoder_stage import DecoderStage
from ltx_jax.training.vae.pruning import check_prunable

pytestmark = pytest.mark.thorough

SMALL = ("shapes_vae_decoder_small", "emoji_vae_decoder_small", "ltxv_vae_decoder_small")


def small(vae, output, **changes):
    """The tiny VAE's config with half of the decoder's width, and all terms that need no files."""
    large = load("vae", "--run.validation-clips", "2", "--run.steps", "6")
    fields = {field.name: getattr(large, field.name) for field in dataclasses.fields(large)}
    loss = dict(kl_weight=0.0, dwt_weight=0.5, gan_weight=0.1, disc_start=0.5)
    fields |= dict(
        vae=str(vae),
        model=dataclasses.replace(large.model, decoder_base_channels=4),
        loss=dataclasses.replace(large.loss, **loss),
        discriminator=DiscriminatorConfig(base_channels=4, levels=2),
        run=dataclasses.replace(large.run, output=str(output), save_every=2, tensorboard=False),
    )
    cfg = TrainDecoder(**fields)
    return dataclasses.replace(
        cfg,
        matching=dataclasses.replace(cfg.matching, pruning_clips=2),
        **changes,
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run of the tiny VAE."""
    folder = tmp_path_factory.mktemp("large") / "run"
    cfg = load("vae", "--run.steps", "10", "--run.output", str(folder), "--run.no-tensorboard")
    loop.fit(loop.open_trainer(cfg), lambda _: None)
    return folder


def trainer_of(cfg):
    return Trainer(DecoderStage.open(cfg, one_device()), compiler_options=QUICK)


@pytest.fixture(scope="module")
def run(large, tmp_path_factory):
    """The states and metrics of a run of six steps, and its folder."""
    folder = tmp_path_factory.mktemp("small") / "run"
    lines: list[str] = []
    cfg = small(large, folder)
    state = loop.fit(trainer_of(cfg), lines.append)
    return folder, cfg, jax.device_get(state), lines


def check_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_only_the_decoder_learns(run, large):
    folder, _, state, lines = run
    source, trained = load_checkpoint(str(large)), load_checkpoint(str(folder))
    check_equal(trained.vae_params["encoder"], source.vae_params["encoder"])
    check_equal(state.params["encoder"], source.vae_params["encoder"])
    check_equal(trained.statistics.mean, source.statistics.mean)
    check_equal(trained.statistics.std, source.statistics.std)
    assert trained.vae.decoder_base_channels * 2 == source.vae.decoder_base_channels
    assert set(state.params) == {"encoder", "decoder", "projection", "discriminator"}
    assert set(state.ema) == {"encoder", "decoder"}
    assert all(f" {name} " in lines[-1] for name in ("dwt", "features", "gan", "to_large"))


def test_it_begins_with_the_pruned_decoder_and_learns(large, tmp_path):
    trainer = trainer_of(small(large, tmp_path))
    first = warm_start.first_state(trainer.stage, trainer.plan)
    check_equal(first.params["encoder"], load_checkpoint(str(large)).vae_params["encoder"])
    found = []
    with sharding.use_mesh(one_device()):
        for batch in trainer.stage.batches(0, 6):
            before = first.params["decoder"]["conv_out"]["kernel"].copy()
            first, metrics = trainer.step(first, batch)
            assert (first.params["decoder"]["conv_out"]["kernel"] != before).any()
            found.append(jax.device_get(metrics))
    assert found[0]["features"] < 0.5  # random projections would be above 1
    assert all(np.isnan(x["gan"]) == (i < 3) for i, x in enumerate(found))
    assert int(first.rejected) == 0


def test_a_run_that_stops_ends_as_one_that_did_not(run, large, tmp_path):
    """Also if the large VAE has gone: the run keeps it."""
    _, whole_cfg, whole, _ = run
    moved = tmp_path / "large"
    shutil.copytree(large, moved)
    settings = dataclasses.replace(whole_cfg.run, output=str(tmp_path / "run"), log_every=1)
    cfg = dataclasses.replace(whole_cfg, vae=str(moved), run=settings)

    class StopError(Exception):
        pass

    def stop(line):
        if line.startswith("step 3/6"):
            raise StopError

    with pytest.raises(StopError):
        loop.fit(trainer_of(cfg), stop)
    shutil.rmtree(moved)
    lines: list[str] = []
    parts = loop.fit(trainer_of(cfg), lines.append)
    assert any("continues after step 2" in line for line in lines)
    check_equal(jax.device_get(parts), whole)


def test_eight_devices_train_as_one(large, tmp_path):
    cfg = small(large, tmp_path)
    quiet = dataclasses.replace(cfg.loss, gan_adaptive=False)
    cfg = dataclasses.replace(cfg, loss=quiet)
    assert_eight_devices_train_as_one(lambda mesh: DecoderStage.open(cfg, mesh), QUICK_MESH)


def test_a_second_run_continues_from_the_decoder_of_the_first(run, large, tmp_path):
    folder, cfg, _, _ = run
    settings = dataclasses.replace(cfg.run, output=str(tmp_path), init_from=str(folder))
    trainer = trainer_of(dataclasses.replace(cfg, run=settings))
    begun = warm_start.first_state(trainer.stage, trainer.plan)
    check_equal(begun.params["decoder"], load_checkpoint(str(folder)).vae_params["decoder"])


def test_it_takes_the_place_of_another_vae_and_is_exported(run, tmp_path):
    folder = run[0]
    own = load_checkpoint(str(folder))
    replaced = load_checkpoint(write_exported(tmp_path / "model"), vae=str(folder))
    check_equal(replaced.vae_params, own.vae_params)
    assert replaced.transformer is not None
    export(str(tmp_path / "model"), tmp_path / "out", vae=str(folder), layouts=["official"])
    exported = load_checkpoint(tmp_path / "out")
    assert exported.vae.decoder_base_channels == 4
    check_equal(exported.vae_params, own.vae_params)
    assert exported.transformer == replaced.transformer


def test_it_is_described_without_the_large_vae(large, tmp_path):
    stage = DecoderStage.describe(small(large, tmp_path), one_device())
    shapes = {x.shape for x in jax.tree.leaves(stage.frozen["large"])}
    assert (3, 3, 3, 16, 16) in shapes or (3, 3, 3, 8, 8) in shapes
    trainer = Trainer(stage)
    [bucket] = stage.cfg.data.sizes
    assert trainer.work(stage.abstract_batch(bucket), 6).flop > 0


def test_features_are_compared_relative_to_the_large_ones():
    draw = np.random.default_rng(0)
    x, matrix = draw.standard_normal((1, 2, 2, 2, 3)), draw.standard_normal((3, 5))
    target = 10 * draw.standard_normal((1, 2, 2, 2, 5))
    arrays = ({"a": jnp.asarray(y)} for y in (matrix, x, target))
    found = feature_loss(*arrays)
    assert found == pytest.approx(
        ((x @ matrix - target) ** 2).mean() / (target**2).mean(), rel=1e-5
    )


def test_the_encoder_takes_no_kl_term(tmp_path):
    cfg = small(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"loss\.kl_weight is 0\.1"):
        dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, kl_weight=0.1))
    with pytest.raises(ValueError, match="vae must name"):
        dataclasses.replace(cfg, vae="")


@pytest.mark.parametrize("name", SMALL)
def test_a_small_decoder_takes_a_third_of_the_operations(name):
    cfg = config.load(str(CONFIGS / f"{name}.py"))
    if name.startswith("ltxv"):
        large = official_config.vae(RELEASED["2b-0.9.6-dev"].config["vae"])
    else:
        large = config.load(str(CONFIGS / f"{name.partition('_')[0]}_vae.py")).model
    check_prunable(large, cfg.model)

    def flop(model):
        size = max(cfg.data.sizes, key=lambda bucket: bucket.num_frames)
        frames = (size.num_frames - 1) // model.temporal_factor + 1
        rows, columns = (side // model.spatial_factor for side in (size.height, size.width))
        z = jax.ShapeDtypeStruct((1, frames, rows, columns, model.latent_channels), jnp.float32)
        params = sharding.unbox(keys.vae_boxed(model))

        def decode(params, z):
            return VideoVAE(model).apply({"params": params}, z, jnp.zeros(1), method="decode")

        return count_flop(decode, params, z)

    assert 0.2 * flop(large) < flop(cfg.model) <= flop(large) / 3
