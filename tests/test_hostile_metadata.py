"""Configurations, headers and indices that no tool wrote: one message each, soon, no traceback."""

import copy
import json
import shutil
import struct
import time

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import random_tensors, raw_config, write_official
from tiny_checkpoint import write_checkpoint, write_exported, write_text_encoder, write_upsampler

from ltx_jax.checkpoints import diffusers, text_encoder_files
from ltx_jax.checkpoints.load import load_checkpoint, load_upsampler, own_settings
from ltx_jax.inference.text_encoder import TextEncoder

# An honest file of this size loads in a second; the rest is other work on the machine.
SECONDS = 30
DEEP = json.loads("[" * 500 + "]" * 500)
HOSTILE = (None, -1, 0, 0.5, 10**9, 10**400, 1e308, "x", [], {}, [[1, 2]], [None] * 3, DEEP)


def outcome(load, *arguments):
    """The message of the error, or None if the file loads; anything else than ValueError fails."""
    begin = time.monotonic()
    try:
        load(*arguments)
        message = None
    except ValueError as error:
        message = str(error)
        assert message
        assert "Traceback" not in message
        assert len(message) < 100_000
    assert time.monotonic() - begin < SECONDS
    return message


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    raw = raw_config("0.9.5")
    return raw, random_tensors(raw)


def mutations(raw, part):
    """Configurations with one value of a part replaced."""
    for key in raw[part]:
        for value in HOSTILE:
            changed = copy.deepcopy(raw)
            changed[part][key] = value
            yield f"{part}.{key} = {str(value)[:20]}", changed


OFFICIAL = [
    *(pytest.param(part, marks=pytest.mark.thorough) for part in ("transformer", "vae")),
    *("scheduler", "allowed"),
]


@pytest.mark.parametrize("part", OFFICIAL)
def test_a_value_of_the_wrong_kind_is_one_message(tmp_path, whole, part):
    """Every key of the official configuration times every hostile value (over 400 files)."""
    raw, values = whole
    path = write_official(tmp_path / "a.safetensors", raw, values)
    cases = mutations(raw, part) if part in raw else _steps(raw)
    tried = refused = 0
    for name, changed in cases:
        write_official(path, changed, values if tried % 10 == 0 else {})
        message = outcome(load_checkpoint, path)
        if message is not None:
            refused += 1
            assert str(path) in message, (name, message)
        tried += 1
    assert tried >= 10
    assert refused > tried / 2  # null counts as absent, and some keys take any number


def _steps(raw):
    for value in (*HOSTILE, [2.0], [0.5] * 2000, ["x"]):
        yield (
            f"allowed_inference_steps = {str(value)[:20]}",
            raw | {"allowed_inference_steps": value},
        )


BLOCKS = [
    [["res_x", 10**9]],
    [["res_x", -1]],
    [["res_x", True]],
    [["res_x", 1.5]],
    [["res_x", {"num_layers": [1]}]],
    [["res_x", [["num_layers", 1]]]],
    [[["res_x"], 1]],
    [["compress_all", {"multiplier": 0}]],
    [["compress_all", {"multiplier": 10**9}]],
    [["compress_all_res", 1]] * 60,
    [["res_x_y", {"multiplier": 64}]] * 12,
    [["attn_res_x", {"num_layers": 1, "attention_head_dim": 0}]],
    [["attn_res_x", {"num_layers": 1, "attention_head_dim": 7}]],
    [["res_x", {"num_layers": 1, "x": 1}]],
    "res_x",
    [None],
    [[]],
    [["res_x", 1, 2]],
]


@pytest.mark.parametrize("half", ["encoder_blocks", "decoder_blocks"])
def test_a_block_of_the_wrong_kind_is_one_message(tmp_path, whole, half):
    raw, values = whole
    for blocks in BLOCKS:
        changed = copy.deepcopy(raw)
        changed["vae"][half] = blocks
        path = write_official(tmp_path / "a.safetensors", changed, values)
        message = outcome(load_checkpoint, path)
        assert message is not None, blocks


TEXTS = {
    "deep": "[" * 100_000,
    "deep object": '{"transformer":' * 100_000,
    "NaN": '{"transformer": NaN}',
    "Infinity": '{"transformer": {"norm_eps": Infinity}}',
    "large": '{"transformer": {"norm_eps": 1e999}}',
    "long number": '{"transformer": ' + "9" * 10_000 + "}",
    "list": "[1]",
    "number": "1",
    "null": "null",
    "parts are lists": '{"transformer": [], "vae": []}',
    "surrogate": '{"transformer": "\\ud800"}',
    "empty": "",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_config_that_is_no_object_is_one_message(tmp_path, whole, kind):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(whole[1], path, {"config": TEXTS[kind]})
    assert str(path) in outcome(load_checkpoint, path)
    assert str(path) in outcome(load_upsampler, path)


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


HEADERS = {
    "float shape": {"a": entry(shape=[2.0])},
    "negative shape": {"a": entry(shape=[-2])},
    "huge shape": {"a": entry(shape=[10**30])},
    "shape of truth": {"a": entry(shape=[True, 2])},
    "text shape": {"a": entry(shape="22")},
    "null shape": {"a": entry(shape=None)},
    "many axes": {"a": entry(shape=[1] * 100 + [2])},
    "float offsets": {"a": entry(data_offsets=[0.0, 8.0])},
    "one offset": {"a": entry(data_offsets=[0])},
    "three offsets": {"a": entry(data_offsets=[0, 4, 8])},
    "offsets backwards": {"a": entry(data_offsets=[8, 0])},
    "offsets negative": {"a": entry(data_offsets=[-8, 0])},
    "offsets far": {"a": entry(dtype="X", data_offsets=[0, 10**18])},
    "null dtype": {"a": entry(dtype=None)},
    "list dtype": {"a": entry(dtype=["F32"])},
    "unknown dtype": {"patchify_proj.weight": entry(dtype="F4")},
    "entry is list": {"a": [1]},
    "entry is null": {"a": None},
    "metadata is list": {"__metadata__": [1]},
    "metadata is number": {"__metadata__": {"config": 1}},
    "metadata is deep": {"__metadata__": {"config": DEEP}},
    "no metadata": {"a": entry()},
    "transformer of one": {"patchify_proj.weight": entry()},
    "vae of one": {"vae.encoder.conv_in.conv.weight": entry()},
    "many blocks": {f"transformer_blocks.{10**12}.a": entry(shape=[2])},
}


def write_header(path, text, data=b"\0" * 64):
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_header_is_one_message(tmp_path, kind):
    path = tmp_path / "a.safetensors"
    write_header(path, json.dumps(HEADERS[kind]).encode())
    assert str(path) in outcome(load_checkpoint, path)
    assert str(path) in outcome(load_upsampler, path)
    assert str(path) in outcome(text_encoder_files.read_config, path)


def test_headers_of_a_million_tensors_or_levels_are_refused_before_they_are_parsed(tmp_path):
    one = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    many = b"{" + b"".join(one % i for i in range(1_500_000))[:-1] + b"}"
    for text in (many, b'{"a":' * 1_000_000, b"[" * 10_000_000, b"{" + b" " * 60_000_000 + b"}"):
        path = tmp_path / "a.safetensors"
        write_header(path, text)
        begin = time.monotonic()
        assert str(path) in outcome(load_checkpoint, path)
        assert time.monotonic() - begin < 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder."""
    path = tmp_path_factory.mktemp("folder")
    raw = raw_config("0.9.0")
    file = write_official(path / "a.safetensors", raw, random_tensors(raw))
    diffusers.write(path / "whole", load_checkpoint(file), max_shard_bytes=20_000)
    return path / "whole"


@pytest.mark.parametrize(
    "part",
    ["scheduler", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("transformer", "vae"))],
)
def test_every_key_of_diffusers_configs_is_checked(tmp_path, folder, part):
    copied = shutil.copytree(folder, tmp_path / "copy")
    if part != "scheduler":  # alone, for speed
        shutil.rmtree(copied / ({"transformer", "vae"} - {part}).pop())
    file = copied / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    for index in copied.rglob("*.index.json"):  # what is read after the configurations is missing
        index.write_text("{}")
    raw = json.loads(file.read_text())
    for key in raw:
        for value in HOSTILE:
            file.write_text(json.dumps(raw | {key: value}))
            if part == "scheduler":
                from ltx_jax.checkpoints import diffusers_config

                outcome(diffusers_config.scheduler, raw | {key: value}, "a", None)
            else:
                from ltx_jax.checkpoints import diffusers_config, diffusers_vae

                read = {"transformer": diffusers_config.transformer, "vae": diffusers_vae.vae}
                outcome(read[part], raw | {key: value}, "a")
    assert "no weight_map" in outcome(load_checkpoint, copied)


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../../../etc/passwd"},
        {"a": "/etc/passwd"},
        {"a": "sub/b.safetensors"},
        {"a": None},
        {"a": ["b"]},
        {"a": 1},
        {"a": ""},
        {"a": ".."},
        ["a"],
        {},
        None,
        "a",
    ],
)
def test_an_index_names_files_beside_it_and_no_others(tmp_path, folder, weight_map):
    copied = shutil.copytree(folder, tmp_path / "copy")
    [index] = (copied / "transformer").glob("*.index.json")
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "index.json" in outcome(load_checkpoint, copied)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What ltx-export writes, and its text encoder."""
    return write_exported(tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize(
    "kind", [kind for kind in TEXTS if "parts" not in kind and kind != "surrogate"]
)
def test_files_of_json_are_one_message_too(tmp_path, exported, kind):
    for name, read in (
        ("settings.json", own_settings),
        ("text_encoder/config.json", TextEncoder.load),
        ("tokenizer/tokenizer_config.json", TextEncoder.load),
    ):
        folder = shutil.copytree(exported, tmp_path / name)
        (folder / name).write_text(TEXTS[kind])
        assert name in outcome(read, folder)
    run = tmp_path / "run"
    (run / "steps").mkdir(parents=True)
    (run / "config.json").write_text(TEXTS[kind])
    assert str(run) in outcome(load_checkpoint, run)


def test_every_key_of_a_text_encoders_config_is_checked(tmp_path):
    write_text_encoder(tmp_path, 16)
    file = tmp_path / "text_encoder" / "config.json"
    raw = json.loads(file.read_text())
    used = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    used += ("relative_attention_num_buckets", "layer_norm_epsilon", "model_type")
    for key in used:
        for value in HOSTILE:
            file.write_text(json.dumps(raw | {key: value}))
            outcome(TextEncoder.load, tmp_path)
    for value in HOSTILE[1:]:
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "ByT5Tokenizer", "model_max_length": value})
        )
        outcome(text_encoder_files.max_byte_tokens, tmp_path / "tokenizer")


def test_every_key_of_an_upsamplers_config_is_checked(tmp_path):
    path = tmp_path / "a.safetensors"
    write_upsampler(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        raw = json.loads(file.metadata()["config"])
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for key in raw:
        for value in HOSTILE:
            safetensors.numpy.save_file(values, path, {"config": json.dumps(raw | {key: value})})
            outcome(load_upsampler, path)


def gguf(tensors=1, entries=0, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value):
    return struct.pack("<Q", len(value)) + value


GGUF = {
    "magic alone": b"GGUF",
    "version": gguf(version=99),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 0),
    "no tensors": gguf(0),
    "many tensors": gguf(2**63),
    "many entries": gguf(1, 2**63),
    "long name": gguf(1, 1, struct.pack("<Q", 2**62) + b"abc"),
    "unknown value": gguf(1, 1, text(b"a") + struct.pack("<I", 77)),
    "endless array": gguf(1, 1, text(b"a") + struct.pack("<IIQ", 9, 4, 2**60)),
    "array of arrays": gguf(1, 1, text(b"a") + struct.pack("<IIQ", 9, 9, 4)),
    "no UTF-8": gguf(1, 1, text(b"\xff\xfe") + struct.pack("<II", 4, 1)),
    "many axes": gguf(1, 0, text(b"a") + struct.pack("<I", 2**31)),
    "huge axes": gguf(1, 0, text(b"a") + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0)),
    "unknown type": gguf(1, 0, text(b"a") + struct.pack("<IQIQ", 1, 32, 999, 0)),
    "odd row": gguf(1, 0, text(b"a") + struct.pack("<IQIQ", 1, 31, 8, 0)),
    "no axes": gguf(1, 0, text(b"a") + struct.pack("<IIQ", 0, 8, 0)),
    "far": gguf(1, 0, text(b"a") + struct.pack("<IQIQ", 1, 32, 8, 2**63)),
    "twice": gguf(2, 0, 2 * (text(b"a") + struct.pack("<IQIQ", 1, 1, 0, 0)) + bytes(64)),
    "alignment": gguf(
        1,
        1,
        text(b"general.alignment")
        + struct.pack("<II", 4, 0)
        + text(b"a")
        + struct.pack("<IQIQ", 1, 1, 0, 0),
    ),
    "deep config": gguf(
        1,
        1,
        text(b"config")
        + struct.pack("<I", 8)
        + text(b"[" * 100_000)
        + text(b"patchify_proj.weight")
        + struct.pack("<IQIQ", 1, 1, 0, 0)
        + bytes(128),
    ),
}


@pytest.mark.parametrize("kind", GGUF)
def test_a_hostile_gguf_is_one_message(tmp_path, kind):
    pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    path.write_bytes(GGUF[kind])
    assert str(path) in outcome(load_checkpoint, path)


def test_a_file_cut_anywhere_or_with_a_flipped_byte_is_one_message(tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, with_vae=False)
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    draw = np.random.default_rng(0)
    for size in draw.integers(0, len(content), 20):
        path.write_bytes(content[:size])
        assert str(path) in outcome(load_checkpoint, path)
    for place in draw.integers(0, header + 8, 60):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.integers(8)
        path.write_bytes(flipped)
        outcome(load_checkpoint, path)
