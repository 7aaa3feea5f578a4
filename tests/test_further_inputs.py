"""A further input of the network (`TransformerConfig.context_shapes`), on its whole way: from a
source through batches, stored latents and several devices to the context, in training and
validation. In sampling it is tested in test_sampling_forms.py, with a network that uses it in
examples/camera_conditioning."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from test_dataset import ENCODING, encoded
from tiny_stages import load, one_device, tiny_vae

from ltx_jax.checkpoints import official
from ltx_jax.config import BucketConfig, DataConfig, MeshConfig, TransformerConfig
from ltx_jax.data import dataset, latent_cache, sources
from ltx_jax.data.loader import Loader, stack
from ltx_jax.data.sources import Example
from ltx_jax.inference import encode_dataset
from ltx_jax.inference.pipeline import LTXPipeline
from ltx_jax.models.transformer import Context, example_inputs
from ltx_jax.runtime import sharding
from ltx_jax.training import validation_clips
from ltx_jax.training.state import TrainState
from ltx_jax.training.transformer.stage import TransformerStage
from ltx_jax.world import scenes

CLIPS = BucketConfig(5, 16, 16, 8)
NONE = (("none", 1.0),)


@struct.dataclass
class Wider(Context):
    camera: Any = None


def pan(clip):
    """Where the camera pans, as a unit vector, and a one that says that this is known."""
    x, y = scenes.DIRECTIONS.get(clip.scene.pan, (0.0, 0.0))
    return np.array([1, x, y], np.float32)


def panning_example(clip, frame_rate):
    return Example(clip.caption, frame_rate, clip.frames, context={"camera": pan(clip)})


@pytest.fixture
def pans(monkeypatch):
    """The procedural world says where its camera pans."""
    for module in (sources, validation_clips):
        monkeypatch.setattr(module, "world_example", panning_example)


def take_camera(patch):
    """Lets every transformer take a camera, and not use it."""
    patch.setattr(TransformerConfig, "context_shapes", {"camera": (3,)})
    for module in ("models.transformer", "training.transformer.loss", "inference.pipeline"):
        patch.setattr(f"ltx_jax.{module}.Context", Wider)


@pytest.fixture
def takes_camera(monkeypatch):
    take_camera(monkeypatch)


def stage_of(*overrides, mesh=None):
    cfg = load("transformer", "--run.output", "/none", *overrides)
    return TransformerStage.open(cfg, mesh or one_device(), vae=tiny_vae())


def test_a_batch_has_the_entries_that_all_of_its_examples_have():
    def example(**context):
        return Example("", 24.0, np.zeros((5, 16, 16, 3), np.uint8), context=context)

    one, two = np.float32([1, 0]), np.float32([[3], [4]])
    batch = stack(CLIPS, "none", [example(a=one, b=two), example(c=one, a=2 * one)])
    np.testing.assert_array_equal(batch.context.pop("a"), [[1, 0], [2, 0]])
    assert batch.context == {}
    batch = stack(CLIPS, "none", [example(b=two), example(b=2 * two)])
    chosen = validation_clips.select_examples(batch, [1, 1, 0])
    np.testing.assert_array_equal(chosen.context["b"], [2 * two, 2 * two, two])


def write_latents(folder):
    """Eight videos with a camera."""
    shards = dataset.DatasetWriter(
        folder,
        latent_cache.KIND,
        latent_cache.latent_features(2, 3, {"camera": (2, 3)}),
        latent_cache.INDEX,
        dataclasses.asdict(ENCODING),
    )
    examples = [
        dataclasses.replace(encoded(i), context={"camera": np.full((2, 3), i / 7, np.float32)})
        for i in range(8)
    ]
    shards.write(0, [latent_cache.to_row(example, 0) for example in examples])
    shards.finish(1)
    return {example.caption: example.context["camera"] for example in examples}


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_stored_inputs_come_back_to_the_bit_in_threads_and_processes(tmp_path, processes):
    written = write_latents(tmp_path / "set")
    size = BucketConfig(9, 16, 16, 4)
    data = DataConfig(source=str(tmp_path / "set"), buckets=(size,), processes=processes)
    loader = Loader(data, NONE, 0)
    for step, batch in enumerate(loader.batches(1, 3), 1):
        cameras = batch.context["camera"]
        assert cameras.dtype == np.float32
        np.testing.assert_array_equal(cameras, [written[text] for text in batch.captions])
        np.testing.assert_array_equal(loader.batch(step).context["camera"], cameras)


@pytest.mark.thorough
@pytest.mark.usefixtures("pans", "takes_camera")
def test_inputs_reach_the_context_on_every_device_and_are_unknown_without_a_caption():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, seq=2))
    stage = stage_of("--flow.caption_dropout", "0.4", mesh=mesh)
    loader = Loader(stage.cfg.data, stage.cfg.flow.patterns, stage.cfg.run.seed)
    captions = dataclasses.replace(stage.model.captions, embed=lambda *_: (None, None))
    model, coords = dataclasses.replace(stage.model, captions=captions), jnp.zeros((8, 4, 3), int)
    kept = []
    for step, batch in enumerate(stage.batches(0, 4)):
        camera = batch["context"]["camera"]
        assert camera.sharding.shard_shape(camera.shape) == (2, 3)
        known = np.asarray(batch["captions"]["mask"]).sum(axis=1) > 1  # the empty one has one token
        expected = loader.batch(step).context["camera"] * known[:, None]
        np.testing.assert_array_equal(camera, expected)
        np.testing.assert_array_equal(camera[:, 0], known)
        kept.append(known)
        assert model.context({}, batch, coords).camera is camera
    assert 0.3 < np.mean(kept) < 0.9
    again = next(stage.batches(3, 4))["context"]["camera"]
    np.testing.assert_array_equal(again, camera)  # as in a run that is resumed


@pytest.mark.usefixtures("pans", "takes_camera")
def test_a_described_batch_and_the_first_parameters_have_the_inputs():
    stage = stage_of()
    described = stage.abstract_batch(CLIPS)
    camera = next(stage.batches(0, 1))["context"]["camera"]
    (shape,) = jax.tree.leaves(described["context"])
    assert (shape.shape, shape.dtype, shape.sharding) == (
        camera.shape,
        camera.dtype,
        camera.sharding,
    )
    _, _, context = example_inputs(stage.cfg.model)
    np.testing.assert_array_equal(context.camera, np.zeros((1, 3)))


@pytest.mark.usefixtures("takes_camera")
def test_data_without_the_input_are_refused_and_so_is_another_shape(pans, monkeypatch):
    assert next(stage_of().batches(0, 1))["context"]
    monkeypatch.setattr(TransformerConfig, "context_shapes", {"camera": (2,)})
    message = r"takes the input 'camera' with the shape \(2,\) for each clip, .* is \(8, 3\)"
    with pytest.raises(ValueError, match=message):
        next(stage_of().batches(0, 1))
    monkeypatch.setattr(TransformerConfig, "context_shapes", {"lens": (3,)})
    with pytest.raises(ValueError, match="takes the input 'lens' and not all of the data have it"):
        next(stage_of().batches(0, 1))


@pytest.mark.thorough
@pytest.mark.usefixtures("pans")
def test_encoding_stores_what_the_network_takes(tmp_path, monkeypatch):
    official.write(tmp_path / "tiny.safetensors", tiny_vae())

    def encode(name):
        cfg = load("transformer", "--vae", str(tmp_path / "tiny.safetensors"))
        encode_dataset.encode(cfg, tmp_path / name, examples=8, report=lambda _: None)
        records = dataset.DatasetReader(tmp_path / name)
        data = dataclasses.replace(cfg.data, source=str(tmp_path / name))
        return Loader(data, NONE, 0).batch(0), records.description

    without, description = encode("without")
    assert (without.context, "context_shapes" in description) == ({}, False)
    with monkeypatch.context() as patch:
        take_camera(patch)
        batch, description = encode("with")
    assert description["context_shapes"] == {"camera": [3]}
    live = Loader(load("transformer").data, NONE, 0).batch(0)
    expected = dict(zip(live.captions, live.context["camera"], strict=True))
    assert set(expected) == set(batch.captions)
    np.testing.assert_array_equal(
        batch.context["camera"], [expected[text] for text in batch.captions]
    )
    # A begun data set is not continued with other inputs.
    with pytest.raises(ValueError, match=r"begun with context_shapes = .*camera"):
        encode("with")


@pytest.mark.thorough
@pytest.mark.usefixtures("pans", "takes_camera")
def test_held_out_videos_are_sampled_with_the_inputs_of_their_clips(monkeypatch):
    stage = stage_of("--run.validation_clips", "2")
    shapes = sharding.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    contexts = []

    def sample(pipe, *_, context, **__):
        contexts.append(np.asarray(context["camera"]))
        return np.zeros((1, 5, 16, 16, 3), np.uint8)

    monkeypatch.setattr(LTXPipeline, "__call__", sample)
    stage.validate(TrainState(*[0] * 3, {}, params, {}, {}))
    clips = validation_clips.read_validation_clips(stage.cfg.run, stage.cfg.data)
    np.testing.assert_array_equal(np.concatenate(contexts), clips.context["camera"])
