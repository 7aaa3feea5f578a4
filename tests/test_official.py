"""Official single files: bitwise round trips, strictness, placement, messages."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import (
    FAMILIES,
    assert_bitwise,
    official_shapes,
    random_tensors,
    raw_config,
    read_all,
    write_official,
)
from peak_memory import PEAK

from ltx_jax.checkpoints import keys, official, official_config, placement, tensors
from ltx_jax.checkpoints.checkpoint import Checkpoint
from ltx_jax.checkpoints.load import load_checkpoint, load_upsampler
from ltx_jax.config import MeshConfig, SchedulerConfig
from ltx_jax.runtime import sharding

BF16 = ml_dtypes.bfloat16
T, V = keys.TRANSFORMER_PREFIX, keys.VAE_PREFIX
NORM3 = "encoder.down_blocks.0.res_blocks.0.norm3.norm.weight"


def flat(params):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(params)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A whole 0.9.5 checkpoint: its configuration, its tensors, its file."""
    raw = raw_config("0.9.5")
    values = random_tensors(raw)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    return raw, values, write_official(path, raw, values)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, BF16) for family in FAMILIES), ("0.9.1", np.float32), ("0.9.5", np.float16)],
)
def test_official_to_ours_to_official_is_bitwise(tmp_path, family, dtype):
    raw = raw_config(family)
    values = random_tensors(raw, dtype)
    # What upstream drops in silence, and what is none of our business.
    values[V + NORM3] = np.arange(4, dtype=np.float32)
    values["text_encoders.t5.shared"] = np.arange(6, dtype=np.int64).reshape(2, 3)
    first = write_official(tmp_path / "a.safetensors", raw, values, model_version="7", empty="")

    loaded = load_checkpoint(first)
    assert set(loaded.tolerated) == {
        V + NORM3,
        "text_encoders.t5.shared",
        *(V + name for name in keys.TOLERATED),
    }
    for params in (loaded.transformer_params, loaded.vae_params):
        assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(dtype)}

    official.write(tmp_path / "b.safetensors", loaded)
    ours, metadata = read_all(tmp_path / "b.safetensors")
    assert_bitwise(ours, values)
    assert metadata == {"config": json.dumps(raw), "model_version": "7", "empty": ""}


def test_parameters_have_linens_layouts(small):
    _, values, path = small
    loaded = load_checkpoint(path)
    name = T + "transformer_blocks.{}.attn1.to_q.weight"
    kernel = loaded.transformer_params["blocks"]["attn1"]["to_q"]["kernel"]
    np.testing.assert_array_equal(kernel, [values[name.format(i)].T for i in range(3)])
    kernel = loaded.vae_params["encoder"]["down_blocks_1"]["conv"]["kernel"]
    stored = values[V + "encoder.down_blocks.1.conv.conv.weight"]
    np.testing.assert_array_equal(kernel, np.einsum("oithw->thwio", stored))
    np.testing.assert_array_equal(
        loaded.statistics.std, values[V + "per_channel_statistics.std-of-means"]
    )


def test_another_dtype_is_had_by_asking(tmp_path, small):
    _, values, path = small
    loaded = load_checkpoint(path, dtype="bfloat16")
    for params in (loaded.transformer_params, loaded.vae_params):
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    kernel = loaded.transformer_params["proj_out"]["kernel"]
    np.testing.assert_array_equal(kernel, values[T + "proj_out.weight"].T.astype(BF16))
    official.write(tmp_path / "b.safetensors", loaded)
    ours, _ = read_all(tmp_path / "b.safetensors")
    assert ours[T + "proj_out.weight"].dtype == BF16


def test_layers_of_different_dtypes_take_the_wider_and_return_to_their_own(tmp_path, small):
    raw, values, _ = small
    mixed = {
        name: value.astype(BF16 if ".1." in name else np.float16 if ".2." in name else np.float32)
        for name, value in values.items()
    }
    path = write_official(tmp_path / "a.safetensors", raw, mixed)
    loaded = load_checkpoint(path)
    kernel = loaded.transformer_params["blocks"]["attn2"]["to_k"]["kernel"]
    assert kernel.dtype == np.float32
    official.write(tmp_path / "b.safetensors", loaded)
    assert_bitwise(read_all(tmp_path / "b.safetensors")[0], mixed)


@pytest.mark.thorough
@pytest.mark.parametrize("parts", [("vae",), ("transformer",), ("transformer", "vae")])
def test_files_without_prefixes_load_and_stay_without(tmp_path, small, parts):
    raw, values, path = small
    raw = {key: value for key, value in raw.items() if key in parts}
    bare = {
        name.removeprefix(T).removeprefix(V): value
        for name, value in values.items()
        if name.startswith(tuple({"transformer": T, "vae": V}[part] for part in parts))
    }
    loaded = load_checkpoint(write_official(tmp_path / "a.safetensors", raw, bare))
    whole = load_checkpoint(path)
    for part in ("transformer", "vae"):
        params = getattr(loaded, f"{part}_params")
        assert (params is not None) == (part in parts)
        if part in parts:
            jax.tree.map(np.testing.assert_array_equal, params, getattr(whole, f"{part}_params"))
    official.write(tmp_path / "b.safetensors", loaded)
    assert_bitwise(read_all(tmp_path / "b.safetensors")[0], bare)


def test_a_file_of_one_network_loads_though_its_config_describes_two(tmp_path, small):
    raw, values, _ = small
    half = {name: value for name, value in values.items() if name.startswith(V)}
    loaded = load_checkpoint(write_official(tmp_path / "a.safetensors", raw, half))
    assert loaded.transformer is None
    assert loaded.vae is not None
    official.write(tmp_path / "b.safetensors", loaded)
    ours, metadata = read_all(tmp_path / "b.safetensors")
    assert_bitwise(ours, half)
    assert json.loads(metadata["config"]) == raw


def test_one_prefixed_name_makes_bare_ones_none_of_ours(tmp_path, small):
    raw, values, _ = small
    values = values | {"proj_out.weight": np.zeros(3, np.float32)}
    loaded = load_checkpoint(write_official(tmp_path / "a.safetensors", raw, values))
    assert "proj_out.weight" in loaded.tolerated


def test_old_spellings_of_the_vae_load_and_are_kept(tmp_path, small):
    raw, values, path = small
    old = {name.replace(".res_blocks.", ".resnets."): value for name, value in values.items()}
    assert old.keys() != values.keys()
    loaded = load_checkpoint(write_official(tmp_path / "a.safetensors", raw, old))
    whole = load_checkpoint(path)
    jax.tree.map(np.testing.assert_array_equal, loaded.vae_params, whole.vae_params)
    official.write(tmp_path / "b.safetensors", loaded)
    assert_bitwise(read_all(tmp_path / "b.safetensors")[0], old)


@pytest.mark.thorough
def test_statistics_may_lack_their_means_or_be_absent(tmp_path, small):
    raw, values, _ = small
    half = {k: v for k, v in values.items() if not k.endswith(keys.STATISTICS_MEAN)}
    loaded = load_checkpoint(write_official(tmp_path / "a.safetensors", raw, half))
    np.testing.assert_array_equal(loaded.statistics.mean, np.zeros(8))
    official.write(tmp_path / "b.safetensors", loaded)
    assert_bitwise(read_all(tmp_path / "b.safetensors")[0], half)
    none = {k: v for k, v in values.items() if keys.STATISTICS not in k}
    loaded = load_checkpoint(write_official(tmp_path / "a.safetensors", raw, none))
    assert loaded.statistics is None


def test_large_tensors_of_others_stay_on_disk(tmp_path, small):
    raw, values, _ = small
    values = values | {"text_encoders.t5.shared": np.arange(1 << 19, dtype=np.float32)}
    loaded = load_checkpoint(write_official(tmp_path / "a.safetensors", raw, values))
    kept = loaded.tolerated["text_encoders.t5.shared"]
    assert isinstance(kept, np.memmap)
    np.testing.assert_array_equal(kept, values["text_encoders.t5.shared"])


@pytest.mark.thorough
def test_a_checkpoint_born_here_describes_itself(tmp_path, small):
    raw, _, path = small
    loaded = load_checkpoint(path)
    born = Checkpoint(
        transformer=loaded.transformer,
        transformer_params=loaded.transformer_params,
        vae=loaded.vae,
        vae_params=loaded.vae_params,
        statistics=loaded.statistics,
        scheduler=SchedulerConfig(sampler="Constant", shift=1.5),
        allowed_inference_steps=(1.0, 0.5),
    )
    official.write(tmp_path / "deep" / "b.safetensors", born)
    back = load_checkpoint(tmp_path / "deep" / "b.safetensors")
    assert (back.transformer, back.vae) == (loaded.transformer, loaded.vae)
    assert back.scheduler == born.scheduler
    assert back.allowed_inference_steps == (1.0, 0.5)
    jax.tree.map(np.testing.assert_array_equal, back.vae_params, loaded.vae_params)
    ours, _ = read_all(tmp_path / "deep" / "b.safetensors")
    expected = set(official_shapes(raw)) - {V + name for name in keys.TOLERATED}
    assert set(ours) == expected


def test_metadata_follows_a_changed_configuration(tmp_path, small):
    loaded = load_checkpoint(small[2])
    changed = dataclasses.replace(loaded, scheduler=SchedulerConfig(shifting="SD3"))
    official.write(tmp_path / "b.safetensors", changed)
    assert load_checkpoint(tmp_path / "b.safetensors").scheduler == changed.scheduler


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(fsdp=2, tensor=2, seq=2), dict(tensor=4)])
def test_every_device_gets_its_part_and_no_more(small, sizes):
    path = small[2]
    mesh = sharding.make_mesh(MeshConfig(**{"data": -1, **sizes}))
    alone = load_checkpoint(path)
    loaded = load_checkpoint(path, mesh=mesh)
    for name, boxed in (
        ("transformer_params", keys.transformer_boxed(loaded.transformer)),
        ("vae_params", keys.vae_boxed(loaded.vae)),
    ):
        declared = flat(sharding.shardings(boxed, mesh))
        whole = flat(getattr(alone, name))
        split = 0
        for key, array in flat(getattr(loaded, name)).items():
            assert array.sharding.is_equivalent_to(declared[key], array.ndim), key
            np.testing.assert_array_equal(array, whole[key])
            split += not array.is_fully_replicated
            for shard in array.addressable_shards:
                assert shard.data.shape == array.sharding.shard_shape(array.shape)
        assert split > 10 or (name == "vae_params" and sizes.get("fsdp", 1) == 1)
    assert loaded.statistics.mean.sharding.is_fully_replicated


@pytest.mark.thorough
def test_sharded_parameters_are_written_as_whole_ones(tmp_path, small, mesh):
    _, values, path = small
    official.write(tmp_path / "b.safetensors", load_checkpoint(path, mesh=mesh))
    assert_bitwise(read_all(tmp_path / "b.safetensors")[0], values)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (T + "proj_out.weight", None, "missing: proj_out.weight"),
        (V + "decoder.conv_in.conv.bias", None, "missing: decoder.conv_in.conv.bias"),
        (T + "proj_out.gain", np.zeros(3, np.float32), f"unexpected: {T}proj_out.gain"),
        (V + "decoder.conv_in.bias", np.zeros(3, np.float32), f"unexpected: {V}decoder.conv_in"),
        # The norms without weights are modules upstream, so this one is not dropped there either.
        (
            V + "encoder.down_blocks.0.res_blocks.0.norm1.weight",
            np.zeros(3, np.float32),
            "unexpected: .*norm1.weight",
        ),
        (
            T + "transformer_blocks.2.ff.net.2.weight",
            np.zeros((16, 63), np.float32),
            r"transformer_blocks.2.ff.net.2.weight has shape \(16, 63\), expected \(16, 64\)",
        ),
        (
            V + keys.STATISTICS_MEAN,
            np.zeros(9, np.float32),
            r"mean-of-means has shape \(9,\), expected \(8,\)",
        ),
        (T + "proj_out.bias", np.zeros(8, np.int32), "proj_out.bias as .*int32.*expected one of"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, small, name, change, message):
    raw, values, _ = small
    values = dict(values)
    if change is None:
        del values[name]
    else:
        values[name] = change
    path = write_official(tmp_path / "a.safetensors", raw, values)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_eight_bit_floats_become_bfloat16_and_are_written_as_they_were(tmp_path, small):
    raw, values, _ = small
    eight = {
        name: value.astype(ml_dtypes.float8_e4m3fn) if ".attn1.to_q.weight" in name else value
        for name, value in values.items()
    }
    pending = {name: tensors.pending(value) for name, value in eight.items()}
    path = tmp_path / "a.safetensors"
    tensors.write_file(path, pending, {"config": json.dumps(raw)})
    loaded = load_checkpoint(path)
    kernel = loaded.transformer_params["blocks"]["attn1"]["to_q"]["kernel"]
    assert kernel.dtype == BF16
    stored = eight[T + "transformer_blocks.1.attn1.to_q.weight"]
    np.testing.assert_array_equal(kernel[1], stored.astype(BF16).T)
    official.write(tmp_path / "b.safetensors", loaded)
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


UNSUPPORTED = {
    "transformer": [
        ("qk_norm", "layer_norm"),
        ("adaptive_norm", "single_scale"),
        ("standardization_norm", "layer_norm"),
        ("activation_fn", "geglu"),
        ("norm_elementwise_affine", True),
        ("positional_embedding_type", "absolute"),
        ("positional_embedding_max_pos", [20, 2048]),
        ("patch_size_t", 2),
        ("cross_attention_dim", 17),
        ("caption_channels", None),
        ("num_layers", 0),
        ("num_layers", "three"),
        ("_class_name", "AVTransformer3DModel"),
    ],
    "vae": [
        ("dims", 2),
        ("normalize_latent_channels", True),
        ("patch_size_t", 2),
        ("latent_log_var", "something"),
        ("norm_layer", "batch_norm"),
        ("spatial_padding_mode", "mirror"),
        ("use_quant_conv", True),
        ("encoder_blocks", [["res_x"]]),
        ("decoder_blocks", [["res_x", {}]]),
        ("_class_name", "VideoAutoencoder"),
    ],
    "scheduler": [("sampler", "Cosine"), ("shifting", "SD4"), ("target_shift_terminal", 1.5)],
}


@pytest.mark.parametrize(
    ("part", "key", "value"), [(part, *case) for part in UNSUPPORTED for case in UNSUPPORTED[part]]
)
def test_a_value_that_we_do_not_have_is_named(part, key, value):
    raw = raw_config("0.9.5")
    raw[part][key] = value
    with pytest.raises(ValueError, match=f"{part}.*{key}") as error:
        official_config.parse(json.dumps(raw), "x.safetensors")
    assert str(error.value).startswith("x.safetensors")


@pytest.mark.parametrize("key", ["qk_norm", "standardization_norm", "activation_fn"])
def test_an_absent_key_means_what_it_means_upstream(key):
    raw = raw_config("0.9.5")
    del raw["transformer"][key]
    with pytest.raises(ValueError, match=f"{key} is missing, which means"):
        official_config.parse(json.dumps(raw), "x")


def test_a_block_that_no_encoder_has_is_named(tmp_path, small):
    raw = json.loads(json.dumps(small[0]))
    raw["vae"]["encoder_blocks"].append(["shrink", 1])
    path = write_official(tmp_path / "a.safetensors", raw, small[1])
    with pytest.raises(ValueError, match="shrink"):
        load_checkpoint(path)


def damaged(content: bytes) -> dict[str, tuple[bytes, str]]:
    header = int.from_bytes(content[:8], "little")
    rest = content[8 + header :]

    def with_header(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + rest

    overlap = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    overlap += b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    return {
        "empty": (b"", "is empty: the download failed"),
        "short": (content[:5], "no safetensors file"),
        "truncated header": (content[: header // 2], "is truncated: it has .* fetch it again"),
        "truncated": (content[:-100], "is truncated: it has .* and its header promises"),
        "text": (b"<html>404 not found</html>" * 9, "no safetensors file"),
        "header": (with_header(b"{" * 50), "no safetensors file"),
        "list": (with_header(b"[1, 2, 3]"), "no safetensors file"),
        "overlap": (with_header(overlap), "overlap"),
        "no config": (
            with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
            "no LTX-Video checkpoint: it has no config, and no matrix",
        ),
        "other config": (with_header(b'{"__metadata__":{"config":"{}"}}'), "neither transformer"),
        "bad config": (with_header(b'{"__metadata__":{"config":"{"}}'), "is not readable as JSON"),
        "no tensors": (
            with_header(
                b'{"__metadata__":'
                + json.dumps({"config": json.dumps(raw_config("0.9.5"))}).encode()
                + b"}"
            ),
            "none of the tensors",
        ),
    }


@pytest.mark.parametrize("kind", list(damaged(b"x" * 99)))
def test_a_damaged_or_foreign_file_is_told_apart(tmp_path, small, kind):
    content, message = damaged(small[2].read_bytes())[kind]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_foreign_files_and_folders_are_refused_with_a_hint(tmp_path, small):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickle"):
        load_checkpoint(tmp_path / "model.ckpt")
    path = write_official(tmp_path / "up.safetensors", {"mid_channels": 32}, {})
    with pytest.raises(ValueError, match="latent upsampler: pass it as --spatial_upscaler"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="is no latent upsampler"):
        load_upsampler(small[2])


def test_writing_fails_whole(tmp_path, small):
    loaded = load_checkpoint(small[2])
    target = tmp_path / "b.safetensors"
    target.write_bytes(b"precious")
    params = jax.tree.map(lambda x: x, loaded.transformer_params)
    params["proj_out"]["bias"] = np.zeros(9, np.float32)
    wrong = dataclasses.replace(loaded, transformer_params=params)
    with pytest.raises(ValueError, match=r"do not fit the configuration.*proj_out/bias"):
        official.write(target, wrong)

    def explode():
        raise RuntimeError("out of luck")

    entries = {
        "a": tensors.pending(np.zeros(9)),
        "b": tensors.Pending(np.dtype("f4"), (2,), explode),
    }
    with pytest.raises(RuntimeError, match="out of luck"):
        tensors.write_file(target, entries, {})
    assert [file.name for file in tmp_path.iterdir()] == ["b.safetensors"]
    assert target.read_bytes() == b"precious"

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot write"):
        official.write(tmp_path / "file" / "b.safetensors", loaded)
    with pytest.raises(ValueError, match="neither a transformer nor a VAE"):
        official.write(target, Checkpoint())


def test_the_hash_follows_the_contents_and_not_the_name(tmp_path, small, monkeypatch):
    raw, values, path = small
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    first = load_checkpoint(path).source_hash
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert load_checkpoint(copy).source_hash == first
    values = values | {T + "proj_out.bias": values[T + "proj_out.bias"] + 1}
    assert load_checkpoint(write_official(copy, raw, values)).source_hash != first

    monkeypatch.setattr(tensors, "_HASH_WHOLE", 10)  # now by pieces
    pieces = tensors.fingerprint([path])
    assert pieces not in (first, tensors.fingerprint([copy]))

    other = tmp_path / "other.bin"  # what Orbax writes is not safetensors
    other.write_bytes(bytes(5000))
    zeros = tensors.fingerprint([other])
    other.write_bytes(bytes(4000) + b"x" + bytes(999))
    assert tensors.fingerprint([other]) != zeros


def test_files_are_those_of_the_formats_own_library_and_aligned(tmp_path):
    """For readers that map the file, whatever dtypes it mixes."""
    values = {
        "a": np.arange(3, dtype=np.uint8),
        "b": np.arange(5).astype(BF16),
        "c": np.arange(7, dtype=np.float32).reshape(7, 1),
        "d": np.array(3.0),
        "e": np.zeros((0, 4), np.int32),
    }
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.numpy.save_file(values, first, {"note": "ü"})
    file = tensors.open_file(first)
    pending = {name: tensors.pending(tensor.read()) for name, tensor in file.tensors.items()}
    tensors.write_file(second, pending, file.metadata)
    found, metadata = read_all(second)
    assert_bitwise(found, values)
    assert metadata == {"note": "ü"}
    again = tensors.open_file(second)
    assert all(tensor.offset % tensor.dtype.itemsize == 0 for tensor in again.tensors.values())


def test_upsampler_files_load(tmp_path):
    import pathlib

    from golden_weights import golden_state_dict

    golden = pathlib.Path(__file__).parent / "golden"
    for kind in ("spatial", "temporal", "both", "spatial2d"):
        with np.load(golden / f"upsampler_{kind}_tiny.npz") as arrays:
            config = json.loads(str(arrays["config"]))
            values = golden_state_dict(json.loads(str(arrays["shapes"])))
        path = tmp_path / f"{kind}.safetensors"
        safetensors.numpy.save_file(values, path, {"config": json.dumps(config)})
        cfg, params = load_upsampler(path)
        assert {name: getattr(cfg, name) for name in config} == config
        stored = values["upsampler.0.weight"]
        turned = np.moveaxis(stored, (0, 1), (-1, -2))
        np.testing.assert_array_equal(params["upsampler_0"]["kernel"], turned)
        values.pop("final_conv.bias")
        safetensors.numpy.save_file(values, path, {"config": json.dumps(config)})
        with pytest.raises(ValueError, match=r"missing: final_conv.bias"):
            load_upsampler(path)


def test_reading_holds_one_tensor_beside_the_parameters(small, monkeypatch):
    """The buffers that tensors are assembled in become the arrays themselves on a CPU."""
    made = []
    allocate = placement._aligned_empty
    monkeypatch.setattr(
        placement, "_aligned_empty", lambda *args: made.append(allocate(*args)) or made[-1]
    )
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    loaded = load_checkpoint(small[2], mesh=mesh)
    buffers = {buffer.ctypes.data for buffer in made}
    pointers = {
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((loaded.transformer_params, loaded.vae_params))
        for shard in leaf.addressable_shards
    }
    assert pointers == buffers


LOAD = f"""
{PEAK}
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from ltx_jax.runtime import sharding
from ltx_jax.checkpoints.load import load_checkpoint
from ltx_jax.config import MeshConfig
mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
loaded = load_checkpoint(sys.argv[1], mesh=mesh)
leaves = jax.block_until_ready(jax.tree.leaves(loaded.transformer_params))
size = sum(leaf.nbytes for leaf in leaves)
print(size, peak())
"""


@pytest.mark.slow
def test_three_gigabytes_load_onto_eight_devices_in_little_more_memory(tmp_path):
    """The released 2B shape with 22 layers; the whole process, libraries too, is counted."""
    from ltx_jax.checkpoints import releases

    raw = releases.RELEASED["2b-0.9.8-distilled"].config["transformer"] | {"num_layers": 22}
    leaves = keys.transformer_leaves(keys.transformer_boxed(official_config.transformer(raw)))
    bits = np.random.default_rng(0).integers(0, 1 << 14, 1 << 25, dtype=np.uint16).view(BF16)
    entries = {
        T + name: tensors.Pending(
            np.dtype(BF16), shape, lambda shape=shape: bits[: np.prod(shape)].reshape(shape)
        )
        for name, shape in keys.stored_shapes(leaves).items()
    }
    path = tmp_path / "large.safetensors"
    tensors.write_file(path, entries, {"config": json.dumps({"transformer": raw})})
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True
        )
    finally:
        path.unlink()
    size, peak = (int(word) for word in done.stdout.split())
    print(f"parameters {size / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB, {peak / size:.3f}")
    assert size > 3e9
    assert peak <= 1.2 * size
