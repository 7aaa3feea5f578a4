"""The transformer stage on several devices, which have to train as one."""

import dataclasses

import pytest
from tiny_stages import (
    QUICK_MESH,
    SLOW_MESHES,
    assert_eight_devices_train_as_one,
    load,
    tiny_vae,
)

from ltx_jax.config import BucketConfig, MeshConfig
from ltx_jax.runtime import sharding
from ltx_jax.training.transformer.stage import TransformerStage

# Extra tokens, first frames, dropped tokens; four heads, which four devices can split. The text
# encoder is trained too.
SETTINGS = (
    *("--flow.keyframes_probability", "1", "--flow.first_frame_probability", "0"),
    *("--flow.max_keyframes", "1", "--flow.token_drop", "0.2"),
    *("--model.num_attention_heads", "4", "--run.output", "/none"),
)
ODD = BucketConfig(num_frames=5, height=20, width=12, batch_size=8)  # tokens that no axis divides
SLOW = [pytest.param(shape, (), marks=pytest.mark.slow) for shape in SLOW_MESHES]
REFERENCES = ("--data.reference", "canny")  # as many tokens again, at another time


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "further"),
    [(QUICK_MESH, ()), (QUICK_MESH, REFERENCES), *SLOW],
    ids=str,
)
def test_eight_devices_train_as_one(shape, further):
    cfg = load("transformer", *SETTINGS, *further)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, buckets=(ODD,)))

    def open_stage(mesh):
        return TransformerStage.open(cfg, mesh, vae=tiny_vae())

    metrics = assert_eight_devices_train_as_one(open_stage, shape)
    assert metrics["conditioned"] > 0.2


def test_heads_that_devices_cannot_split_are_refused_at_the_start():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, seq=2, tensor=2))
    cfg = load("transformer", "--run.output", "/none")
    with pytest.raises(ValueError, match="2 attention heads cannot be split"):
        TransformerStage.open(cfg, mesh, vae=tiny_vae())
