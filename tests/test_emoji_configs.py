"""The configs of animated emoji, with small networks, on a data set that is drawn here."""

import dataclasses
import pathlib
import re

import pytest
from emoji_files import write_set
from quick import QUICK
from random_networks import write_random_efficientnet

from ltx_jax import config
from ltx_jax.config import BucketConfig, DiscriminatorConfig
from ltx_jax.inference import encode_dataset
from ltx_jax.models import efficientnet
from ltx_jax.training import loop
from ltx_jax.training.transformer.stage import TransformerStage
from ltx_jax.training.vae.stage import VAEStage

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
BUCKETS = (BucketConfig(5, 16, 16, batch_size=8), BucketConfig(1, 16, 16, batch_size=8))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("emoji"))


def small(name, output, source, **changes):
    """A config with the networks of the smoke tests, on small clips, for two steps."""
    cfg = config.load(str(CONFIGS / f"{name}.py"))
    kind = "transformer" if name == "emoji_transformer" else "vae"
    tiny = config.load(str(CONFIGS / f"shapes_tiny_{kind}.py"))
    run = {"output": str(output), "steps": 2, "save_every": 2, "log_every": 1, "validate_every": 0}
    if name == "emoji_vae":  # whose weights belong to larger networks
        run |= {"init_from": None, "init_redraw": (), "init_settings": ()}
    return dataclasses.replace(
        cfg,
        model=tiny.model,
        data=dataclasses.replace(cfg.data, source=source, buckets=BUCKETS),
        run=dataclasses.replace(cfg.run, **run, tensorboard=False),
        **changes,
    )


def trained(cfg):
    """Trains; returns what was logged."""
    lines = []
    loop.train(cfg, lines.append)
    log = "\n".join(lines)
    assert "nan" not in log
    return log


@pytest.mark.thorough
def test_the_three_stages_train_one_after_the_other(source, tmp_path, monkeypatch):
    """Also on latents that were encoded in advance, of which a first command made some."""
    monkeypatch.setattr(efficientnet, "_COMPARED", (1, 3))  # the others take minutes to compile
    for stage in (VAEStage, TransformerStage):
        monkeypatch.setattr(stage, "compiler_options", lambda _: QUICK)
    trained(small("emoji_vae", tmp_path / "vae", source))

    write_random_efficientnet(tmp_path / "efficientnet.safetensors")
    cfg = small("emoji_vae_refined", tmp_path / "refined", source)
    named = {"efficientnet": str(tmp_path / "efficientnet.safetensors"), "disc_start": 0.0}
    cfg = dataclasses.replace(
        cfg,
        loss=dataclasses.replace(cfg.loss, **named),
        discriminator=DiscriminatorConfig(base_channels=4, levels=2),
        run=dataclasses.replace(cfg.run, init_from=str(tmp_path / "vae")),
    )
    log = trained(cfg)
    assert cfg.loss.efficientnet_weight > 0
    assert cfg.loss.gan_weight > 0
    assert re.search(r"efficientnet 0\.\d*[1-9]", log)
    assert "disc_accuracy" in log

    tiny = config.load(str(CONFIGS / "shapes_tiny_transformer.py"))
    changes = {"vae": str(tmp_path / "refined"), "text_encoder": tiny.text_encoder}
    cfg = small("emoji_transformer", tmp_path / "live", source, **changes)
    trained(cfg)
    encode_dataset.encode(cfg, tmp_path / "latents", examples=8, report=lambda _: None)
    cached = small("emoji_transformer", tmp_path / "cached", str(tmp_path / "latents"), **changes)
    trained(cached)
