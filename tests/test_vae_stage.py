"""The VAE stage with its tiny networks: buckets, the discriminator, validation."""

import dataclasses
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK
from tiny_stages import load, one_device

from ltx_jax.config import BucketConfig, DiscriminatorConfig, MeshConfig
from ltx_jax.data.loader import Batch
from ltx_jax.runtime import sharding
from ltx_jax.training import loop
from ltx_jax.training.step import GRADIENTS, Trainer
from ltx_jax.training.vae.gan import METRICS
from ltx_jax.training.vae.stage import VAEStage
from ltx_jax.training.validation_clips import read_validation_clips, require_pixels

PICTURES = BucketConfig(num_frames=1, height=24, width=16, batch_size=8)
CLIPS = BucketConfig(num_frames=5, height=16, width=16, batch_size=8)


def full(*overrides, **changes):
    """The tiny config with all that needs no files, on pictures and clips."""
    fast = ("--optim.peak-lr", "0.02", "--run.steps", "40", "--run.validation-clips", "2")
    cfg = load("vae", *fast, *overrides)
    loss = dict(mse_weight=0.5, dwt_weight=0.5, gan_weight=0.1, disc_start=0.05, dwt_levels=2)
    return dataclasses.replace(
        cfg,
        loss=dataclasses.replace(cfg.loss, **(loss | changes)),
        discriminator=DiscriminatorConfig(base_channels=4, levels=2),
        data=dataclasses.replace(cfg.data, buckets=(PICTURES, CLIPS)),
    )


@pytest.fixture(scope="module")
def run():
    """A trainer, and states and metrics of six steps; the discriminator begins in the third."""
    # Compiled at a low level: tests spend more on compiling than on running.
    trainer = Trainer(VAEStage.open(full(), one_device()), compiler_options=QUICK)
    current, states, metrics = trainer.plan.make(), [], []
    with sharding.use_mesh(one_device()):
        for batch in trainer.stage.batches(0, 6):
            states.append(jax.device_get(current))
            current, values = trainer.step(current, batch)
            metrics.append((batch["frames"].shape, jax.device_get(values)))
    return trainer, [*states, jax.device_get(current)], metrics


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.thorough
def test_pictures_and_clips_go_through_one_step_and_one_discriminator(run):
    _, states, metrics = run
    assert {shape for shape, _ in metrics} == {(8, 1, 24, 16, 3), (8, 5, 16, 16, 3)}
    assert int(states[-1].updates) == 6
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        for tree in ("params", "opt_state"):
            rival = [getattr(state, tree)["discriminator"] for state in (before, after)]
            assert equal(*rival) == (step < 2)
        for part in ("encoder", "decoder"):
            assert not equal(before.params[part], after.params[part])
        assert set(after.ema) == {"encoder", "decoder"}


@pytest.mark.thorough
def test_every_term_has_a_metric_of_its_own(run):
    trainer, states, metrics = run
    game = {"gan", "gan_scale", "disc_loss", "disc_accuracy", "grad_norm/discriminator"}
    always = {"loss", "pixel", "mse", "dwt", "kl", "psnr", "grad_norm", "dead_channels"}
    always |= {"latent_std_min", "latent_std_max", "grad_norm/encoder", "grad_norm/decoder"}
    assert [trainer.pending_metrics(states[i]) for i in (1, 2)] == [set(METRICS), set()]
    for step, (_, shown) in enumerate(metrics):
        found = {name: value for name, value in shown.items() if name != GRADIENTS}
        assert set(shown[GRADIENTS]) == {"encoder", "decoder", "discriminator"}
        assert set(found) == always | game | {"rejected", "rejected_in_a_row"}
        silent = {name for name, value in found.items() if np.isnan(value)}
        assert silent == (game if step < 2 else set())  # 5 % of the run
        parts = [found[f"grad_norm/{part}"] ** 2 for part in ("encoder", "decoder")]
        assert found["grad_norm"] == pytest.approx(sum(parts) ** 0.5, rel=1e-5)


@pytest.mark.thorough
def test_injected_noise_begins_at_zero_and_is_learnt(run):
    _, states, _ = run

    def scales(params):
        leaves = jax.tree.leaves_with_path(params["decoder"])
        return [x for path, x in leaves if "per_channel_scale" in jax.tree_util.keystr(path)]

    assert len(scales(states[0].params)) == 2
    assert all((x == 0).all() for x in scales(states[0].params))
    assert all((x != 0).any() for x in scales(states[1].params))


@pytest.mark.thorough
def test_a_clip_is_learnt_by_heart(run):
    """By all terms together, against a discriminator that learns too."""
    trainer, states, _ = run
    # Laid out as the steps before were, so that nothing is compiled again.
    layout = jax.tree.map(lambda x: x.sharding, trainer.plan.shapes)
    current, found = jax.device_put(states[0], layout), []
    with sharding.use_mesh(one_device()):
        batch = next(b for b in trainer.stage.batches(0, 6) if b["frames"].shape[1] > 1)
        for _ in range(24):
            current, metrics = trainer.step(current, batch)
            found.append(float(metrics["pixel"]))
    assert np.mean(found[-5:]) < 0.5 * found[0]
    assert int(current.updates) == 24


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(tmp_path):
    """The discriminator and its optimiser too."""
    cfg = full("--run.steps", "6", "--run.save-every", "3")
    whole = loop.train(_at(cfg, tmp_path / "whole"), lambda line: None)

    class StopError(Exception):
        pass

    def stop(line):
        if line.startswith("step 4/6"):
            raise StopError

    often = _at(cfg, tmp_path / "parts", log_every=1)
    with pytest.raises(StopError):
        loop.train(often, stop)
    lines = []
    parts = loop.train(often, lines.append)
    assert any("continues after step 3" in line for line in lines)
    assert equal(whole.params["discriminator"], parts.params["discriminator"])
    assert equal(whole, parts)


def _at(cfg, folder, **changes):
    changes = dict(output=str(folder), tensorboard=False) | changes
    return dataclasses.replace(
        cfg, run=dataclasses.replace(cfg.run, **changes), mesh=MeshConfig(data=1, fsdp=8)
    )


@pytest.mark.thorough
def test_work_is_counted_per_bucket(run):
    trainer, _, _ = run
    found = {}
    for size in (PICTURES, CLIPS):
        shape = (size.batch_size, size.num_frames, size.height, size.width, 3)
        found[size] = trainer.work({"frames": jnp.zeros(shape, jnp.uint8)}, 3)
    # 4 x 4 x 2 pixels a latent.
    assert found[PICTURES].tokens == 8 * 6 * 4
    assert found[CLIPS].tokens == 8 * 3 * 4 * 4

    clips = {"frames": jnp.zeros((8, 5, 16, 16, 3), jnp.uint8)}
    alone = Trainer(VAEStage.describe(full(gan_weight=0.0), one_device()))
    without = alone.work(clips, 3).flop
    assert 0 < without < found[CLIPS].flop
    assert trainer.work(clips, 2).flop == without  # the discriminator begins in the third step


@pytest.mark.thorough
def test_validation_shows_held_out_clips_by_the_averaged_parameters(run):
    trainer, states, _ = run
    stage = trainer.stage
    found = stage.validate(jax.tree.map(jnp.asarray, states[-1]))
    assert next(iter(found.scalars)) == "val_pixel"  # the one to lower
    levels = {f"val_psnr_at/{t}" for t in (0.05, 0.1, 0.2)}
    assert set(found.scalars) == {"val_pixel", "val_psnr", "val_ssim"} | levels
    assert all(np.isfinite(list(found.scalars.values())))
    pairs = [f"{kind} {i}" for kind in ("reconstruction", "decode times") for i in range(2)]
    assert sorted(found.videos) == sorted(pairs)
    pair = found.videos["reconstruction 1"]
    assert pair.frames.shape == (5, 16, 32, 3)
    assert pair.frames.dtype == np.uint8
    assert found.videos["decode times 1"].frames.shape == (5, 16, 64, 3)
    # The left half of both is the same answer, without noise; the original is not trained on.
    np.testing.assert_array_equal(
        pair.frames[:, :, 16:], found.videos["decode times 1"].frames[:, :, :16]
    )
    clip = read_validation_clips(full().run, full().data).frames[1]
    np.testing.assert_array_equal(pair.frames[:, :, :16], clip)
    error = (pair.frames[:, :, 16:].astype(float) - clip) / 127.5
    # One of two clips; rounding to 256 levels and clipping.
    assert 0 < np.abs(error).mean() < 3 * found.scalars["val_pixel"]
    assert set(found.histograms) == {"latent_mean", "latent_std"}
    np.testing.assert_array_equal(
        found.histograms["latent_std"], stage.latent_statistics(states[-1])["std"]
    )
    again = stage.validate(jax.tree.map(jnp.asarray, states[-1]))
    assert again.scalars == found.scalars
    moved = dataclasses.replace(states[-1], ema=states[0].ema)
    assert stage.validate(jax.tree.map(jnp.asarray, moved)).scalars != found.scalars
    other = dataclasses.replace(states[-1], params=states[0].params)
    assert stage.validate(jax.tree.map(jnp.asarray, other)).scalars == found.scalars


def test_without_its_files_lpips_is_off_and_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        VAEStage.open(load("vae"), one_device())
        assert not caplog.records
        stage = VAEStage.open(load("vae", "--loss.lpips-weight", "0.5"), one_device())
    assert "LPIPS is off" in caplog.text
    assert "--loss.vgg and --loss.lpips-heads" in caplog.text
    assert not stage.frozen
    named = ("--loss.lpips-weight", "0.5", "--loss.vgg", "a.pth", "--loss.lpips-heads", "b.pth")
    with pytest.raises(ValueError, match=r"a\.pth is a pickle"):
        VAEStage.open(load("vae", *named), one_device())


@pytest.mark.parametrize(
    ("bucket", "changes", "message"),
    [
        (CLIPS, {"num_frames": 4}, "4 frames, and this VAE takes 2k"),
        (CLIPS, {"height": 20}, "20 x 16 pixels cannot be halved 3 times"),
        (PICTURES, {"width": 4, "height": 8}, "8 x 4 pixels are smaller than a patch of the.* 8:"),
    ],
)
def test_a_bucket_that_something_cannot_take_is_refused_before_any_step(bucket, changes, message):
    bad = dataclasses.replace(bucket, **changes)
    cfg = full(dwt_levels=3 if bad.width == 16 else 2)
    cfg = dataclasses.replace(
        cfg,
        data=dataclasses.replace(cfg.data, buckets=(bad,)),
        discriminator=DiscriminatorConfig(levels=3),
    )
    with pytest.raises(ValueError, match=message):
        VAEStage.open(cfg, one_device())


def test_held_out_clips_that_are_not_there_show_before_the_first_step(tmp_path):
    missing = str(tmp_path / "missing")
    wrong = ("--run.validation-source", missing, "--run.validate-every", "10")
    with pytest.raises(ValueError, match=f"{missing} is not a folder"):
        VAEStage.open(load("vae", *wrong), one_device())


def test_data_without_pixels_is_refused():
    batch = Batch(CLIPS, "none", (), np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="trained on pixels, but this data set holds"):
        require_pixels(batch)
