"""Keys in the configurations of files: all that released models have are read, others refused."""

import copy
import dataclasses
import inspect
import json

import pytest

from ltx_jax.checkpoints import (
    diffusers_config,
    diffusers_vae,
    embedded_models,
    official,
    official_config,
    tensors,
)
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.releases import RELEASED
from ltx_jax.config import ExecutionConfig, SchedulerConfig

# What the files of 0.9.0 say beside what decides the network
# (ltx_video/utils/diffusers_config_mapping.py upstream).
NOTES = {
    "_diffusers_version": "0.25.1",
    "_name_or_path": "PixArt-alpha/PixArt-XL-2-256x256",
    "dropout": 0.0,
    "norm_num_groups": 32,
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "project_to_2d_pos": True,
    "upcast_attention": False,
    "use_linear_projection": False,
}


@pytest.mark.parametrize("version", RELEASED)
def test_released_files_are_read_with_their_notes(version):
    raw = copy.deepcopy(RELEASED[version].config)
    plain = official_config.parse(json.dumps(raw), version)
    raw["transformer"] |= NOTES
    raw["vae"] |= {"_diffusers_version": "0.25.1", "normalize_latent_channels": False}
    raw["scheduler"] |= {"_diffusers_version": "0.25.1"}
    assert official_config.parse(json.dumps(raw), version) == plain


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        # Of LTX-2, which computes with these otherwise than we do.
        ("transformer", "rope_type", "split"),
        ("transformer", "frequencies_precision", "float64"),
        ("transformer", "cross_attention_norm", True),
        ("transformer", "use_middle_indices_grid", False),
        ("vae", "decoder_spatial_padding_mode", "reflect"),
        ("vae", "causal_encoder", False),
        ("scheduler", "shift_type", "log"),
    ],
)
def test_an_unknown_key_is_refused_by_name(part, key, value):
    raw = copy.deepcopy(RELEASED["2b-0.9.5"].config)
    raw[part][key] = None  # not set
    official_config.parse(json.dumps(raw), "file")
    raw[part][key] = value
    with pytest.raises(ValueError, match=f"file: {part} has {key} = {value!r}, which no LTX-Video"):
        official_config.parse(json.dumps(raw), "file")


def test_an_unknown_key_of_a_block_is_refused_by_name():
    raw = copy.deepcopy(RELEASED["2b-0.9.5"].config)
    raw["vae"]["decoder_blocks"][0][1]["gated"] = True
    with pytest.raises(ValueError, match="decoder_blocks: res_x has gated = True"):
        official_config.parse(json.dumps(raw), "file")


def test_an_unknown_key_of_an_upsampler_is_refused_by_name():
    raw = {"_class_name": "LatentUpsampler", "in_channels": 128, "dims": 3}
    official_config.upsampler(raw, "file")
    with pytest.raises(ValueError, match=r"file has rational_spatial_scale = 1\.5"):
        official_config.upsampler(raw | {"rational_spatial_scale": 1.5}, "file")


@pytest.mark.parametrize(
    ("name", "read", "key", "value"),
    [
        ("LTXVideoTransformer3DModel", diffusers_config.transformer, "rope_type", "split"),
        ("AutoencoderKLLTXVideo", diffusers_vae.vae, "decoder_spatial_padding_mode", "reflect"),
        (
            "FlowMatchEulerDiscreteScheduler",
            lambda raw, where: diffusers_config.scheduler(raw, where, None),
            "time_shift",
            2.0,
        ),
    ],
)
def test_all_that_a_class_of_diffusers_takes_is_known_and_the_rest_refused(name, read, key, value):
    signature = inspect.signature(getattr(pytest.importorskip("diffusers"), name))
    raw = {"_class_name": name, "_diffusers_version": "0.36.0"}
    raw |= {name: parameter.default for name, parameter in signature.parameters.items()}
    read(raw, "config.json")
    with pytest.raises(ValueError, match=f"config.json has {key} = {value!r}"):
        read(raw | {key: value}, "config.json")


def test_what_is_exported_says_nothing_of_execution():
    released = official_config.parse(json.dumps(RELEASED["2b-0.9.5"].config), "2b")
    born = Checkpoint(transformer=released.transformer, vae=released.vae)
    raw = json.loads(official.metadata(born)["config"])
    execution = {field.name for field in dataclasses.fields(ExecutionConfig)}
    assert not execution & {*raw["transformer"], *raw["vae"]}
    assert official_config.parse(json.dumps(raw), "born") == released._replace(
        scheduler=SchedulerConfig(), allowed_inference_steps=None
    )


def test_what_older_versions_exported_is_still_read():
    """They wrote the form of attention into their files: the model that ships is one."""
    file = tensors.open_file(embedded_models.folder("embedded:shapes") / "model.safetensors")
    assert json.loads(file.metadata["config"])["transformer"]["attention"] == "auto"
    assert official_config.parse(file.metadata["config"], "shapes").transformer is not None
