"""What the text encoder promises: tokenizers, files of transformers, prompts in, embeddings out."""

import dataclasses
import io
import json
import logging
import pathlib
import random
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import transformers
from safetensors.numpy import load_file, save_file
from t5_reference import TINY, reference, run, save, whole

from ltx_jax.checkpoints import text_encoder_files
from ltx_jax.config import MeshConfig
from ltx_jax.inference import text_encoder
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder, VocabularyTokenizer, tokenize
from ltx_jax.runtime.sharding import make_mesh

ROOT = pathlib.Path(__file__).parents[1]
CAPTIONS = (
    "a red car drives down the road in the rain",
    "the blue square moves to the left of the frame",
    "zwei kleine Hunde spielen im Garten, und ein Vogel singt",
    "a green circle grows while the camera pans",
)
PROMPTS = [
    "a red square grows",
    "",
    "the camera moves to the left while a circle sings in the rain",
]
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def vocabulary():
    """The content of a spiece.model, as T5's was made."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def torch_model():
    return reference()


@pytest.fixture(scope="module")
def pixart(torch_model, vocabulary, tmp_path_factory):
    """A directory with text_encoder/ (in shards) and tokenizer/, as the released models name."""
    root = tmp_path_factory.mktemp("pixart")
    save(torch_model, root / "text_encoder", max_shard_size="20KB")
    assert len(list((root / "text_encoder").glob("*.safetensors"))) > 3
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "spiece.model").write_bytes(vocabulary)
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
    (root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def encoder(pixart):
    return TextEncoder.load(pixart, dtype="float32", max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def tokenizer(pixart):
    return transformers.T5Tokenizer.from_pretrained(pixart / "tokenizer")


def call(tokenizer, texts, max_tokens=MAX_TOKENS):
    """Ids and mask as the official pipeline asks transformers for them."""
    output = tokenizer(
        [text.strip() for text in texts],
        padding="max_length",
        max_length=max_tokens,
        truncation=True,
        add_special_tokens=True,
        return_tensors="np",
    )
    return output["input_ids"], output["attention_mask"]


def random_texts(count=300):
    draw = random.Random(0)
    ranges = [
        (32, 127),
        (0xA0, 0x250),
        (0x400, 0x500),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1F6FF),
        (1, 32),
    ]
    return [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(40)))
        for _ in range(count)
    ]


def test_bytes_are_those_of_byt5():
    texts = [*PROMPTS, *CAPTIONS, "  two  spaces\t", "naïve 日本語 🎬\u200d", *random_texts()]
    ours = tokenize(ByteTokenizer(), texts, MAX_TOKENS)
    for actual, expected in zip(ours, call(transformers.ByT5Tokenizer(), texts), strict=True):
        assert actual.dtype == np.int32
        np.testing.assert_array_equal(actual, expected)
    assert ByteTokenizer().vocab_size == len(transformers.ByT5Tokenizer()) == 384


def test_a_text_that_spells_a_control_token_is_text():
    assert ByteTokenizer().token_ids("</s>") == [byte + 3 for byte in b"</s>"]


def test_pieces_are_those_of_sentencepiece_and_transformers(pixart, vocabulary, tokenizer):
    ours = VocabularyTokenizer(pixart / "tokenizer")
    texts = [*PROMPTS, *CAPTIONS, "  two  spaces\t", "naïve 日本語", *random_texts(50)]
    for actual, expected in zip(
        tokenize(ours, texts, MAX_TOKENS), call(tokenizer, texts), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    reader = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    for caption in CAPTIONS:
        assert ours.token_ids(caption) == reader.encode(caption)


@pytest.mark.parametrize("length", [0, 22, 23, 24, 60])
def test_a_long_text_is_cut_and_ends_in_eos(length):
    ids, mask = tokenize(ByteTokenizer(), ["x" * length], MAX_TOKENS)
    kept = min(length, 23)
    assert ids[0].tolist() == [ord("x") + 3] * kept + [1] + [0] * (23 - kept)
    assert mask[0].tolist() == [1] * (kept + 1) + [0] * (23 - kept)


def test_a_cut_prompt_is_reported(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encoder.encode(["a red square grows"])
        assert not caplog.records
        encoder.encode(["a green circle " * 20])
    assert "is cut to its first 23" in caplog.text


def test_white_space_is_stripped_and_nothing_else(encoder):
    texts = ["  A red\n square. ", "A red\n square.", "a red\n square.", "A red\n square"]
    ids, _ = tokenize(ByteTokenizer(), texts, MAX_TOKENS)
    np.testing.assert_array_equal(ids[0], ids[1])
    assert len({tuple(row) for row in ids}) == 3
    embeds, mask = dataclasses.replace(encoder, tokenizer=ByteTokenizer()).encode(texts)
    np.testing.assert_array_equal(mask[0], mask[1])
    np.testing.assert_array_equal(embeds[0], embeds[1])


def test_the_padding_mask_is_passed_to_t5(encoder, torch_model, tokenizer):
    """Diffusers' LTX pipelines leave it out, so that the padding changes every embedding."""
    embeds, mask = encoder.encode(PROMPTS)
    ids, expected_mask = call(tokenizer, PROMPTS)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask.dtype == jnp.int32
    assert mask.sum(axis=1).tolist()[1] == 1
    # Rounding of float32 over 3 layers: 7e-6 seen.
    np.testing.assert_allclose(embeds, run(torch_model, ids, expected_mask), atol=2e-5)
    moved = np.abs(embeds - run(torch_model, ids, None)) * mask[:, :, None]
    assert moved.max(axis=(1, 2))[:2].min() > 1e-2  # the third prompt fills its row


def test_embeddings_depend_on_neither_the_batch_nor_the_padding(encoder):
    embeds, mask = encoder.encode(PROMPTS)
    longer = dataclasses.replace(encoder, max_tokens=40)
    for i, prompt in enumerate(PROMPTS[:2]):  # the third is cut
        alone, _ = longer.encode([prompt])
        length = int(mask[i].sum())
        np.testing.assert_allclose(alone[0, :length], embeds[i, :length], atol=1e-5)


def test_embeddings_have_the_dtype_asked_for(pixart, encoder):
    half = TextEncoder.load(pixart, max_tokens=MAX_TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    embeds, _ = half.encode(PROMPTS)
    assert embeds.dtype == jnp.bfloat16
    # Weights and operands of 8 bits through 3 layers.
    assert np.abs(embeds.astype(np.float32) - encoder.encode(PROMPTS)[0]).max() < 0.2


@pytest.mark.thorough
def test_a_mesh_gives_the_embeddings_of_one_device(pixart, encoder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = TextEncoder.load(pixart, dtype="float32", max_tokens=MAX_TOKENS, mesh=mesh)
    for actual, expected in zip(split.encode(PROMPTS), encoder.encode(PROMPTS), strict=True):
        # Three prompts over four parts of the batch. Sums in another order: rounding of float32.
        assert actual.sharding.is_fully_replicated
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert split.identity == encoder.identity


@pytest.mark.thorough
@pytest.mark.parametrize("place", ["text_encoder", "flat", "hub"])
def test_every_layout_of_a_text_encoder_loads(pixart, encoder, tmp_path, monkeypatch, place):
    if place == "text_encoder":
        source = str(pixart / "text_encoder")
    elif place == "flat":
        shutil.copytree(pixart / "text_encoder", tmp_path, dirs_exist_ok=True)
        shutil.copytree(pixart / "tokenizer", tmp_path, dirs_exist_ok=True)
        source = tmp_path
    else:
        asked = []
        monkeypatch.setattr(
            text_encoder.hub,
            "resolve",
            lambda name, patterns: asked.append((name, patterns)) or pixart,
        )
        source = "org/pipeline"
    loaded = TextEncoder.load(source, dtype="float32", max_tokens=MAX_TOKENS)
    assert loaded.identity == encoder.identity
    jax.tree.map(np.testing.assert_array_equal, loaded.params, encoder.params)
    if place == "hub":
        [(name, patterns)] = asked
        assert name == "org/pipeline"
        ours = [str(path.relative_to(pixart)) for path in pixart.rglob("*.*")]
        others = ["transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.bin"]
        fetched = set(
            huggingface_hub.utils.filter_repo_objects(ours + others, allow_patterns=patterns)
        )
        assert fetched == set(ours)


def test_a_decoder_and_a_second_embedding_are_passed_over(tmp_path):
    model = whole()
    file = save(model, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    assert any(name.startswith("decoder.block.0") for name in tensors)
    # As older versions of transformers wrote it.
    tensors |= {"encoder.embed_tokens.weight": tensors["shared.weight"]}
    tensors |= {"lm_head.weight": tensors["shared.weight"]}
    save_file(tensors, file)
    params = text_encoder_files.load_params(tmp_path, TINY)
    np.testing.assert_array_equal(params["shared"]["embedding"], model.shared.weight.detach())


@pytest.mark.parametrize(("dtype", "shard"), [("float32", 20_000), ("bfloat16", 5 * 10**9)])
def test_transformers_loads_what_we_save(pixart, tokenizer, tmp_path, dtype, shard):
    ours = TextEncoder.load(pixart, dtype=dtype, max_tokens=MAX_TOKENS)
    ours.save(tmp_path / "a")
    text_encoder_files.save(tmp_path / "b", ours.cfg, ours.params, shard)
    shards = [load_file(file).values() for file in (tmp_path / "b").glob("*.safetensors")]
    assert (len(shards) > 1) == (shard == 20_000)
    assert all(len(part) == 1 or sum(x.nbytes for x in part) <= shard for part in shards)
    model, info = transformers.T5EncoderModel.from_pretrained(
        tmp_path / "b", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert str(model.dtype) == f"torch.{dtype}"
    embeds, mask = TextEncoder.load(tmp_path / "a", dtype="float32", max_tokens=24).encode(PROMPTS)
    ids, _ = call(transformers.T5Tokenizer.from_pretrained(tmp_path / "a" / "tokenizer"), PROMPTS)
    np.testing.assert_array_equal(ids, call(tokenizer, PROMPTS)[0])
    np.testing.assert_allclose(embeds, run(model.float(), ids, np.array(mask)), atol=2e-5)
    again = text_encoder_files.load_params(tmp_path / "b", ours.cfg)
    jax.tree.map(np.testing.assert_array_equal, again, ours.params)


def test_the_key_of_stored_embeddings_is_that_of_older_versions():
    """It was made for the model that ships, before dtypes left the encoder's configuration."""
    assert TextEncoder.load("embedded:shapes").identity == "byt5-2891d99df51d481d"


def test_a_byte_model_is_saved_with_its_tokenizer(encoder, tmp_path):
    ours = TextEncoder(ByteTokenizer(), encoder.cfg, encoder.params, MAX_TOKENS)
    ours.save(tmp_path)
    again = TextEncoder.load(tmp_path, dtype="float32", max_tokens=MAX_TOKENS)
    assert again.tokenizer == ByteTokenizer()
    assert again.identity == ours.identity
    # No longer captions than it was trained with, unless fewer are asked for.
    assert TextEncoder.load(tmp_path).max_tokens == MAX_TOKENS
    assert TextEncoder.load(tmp_path, max_tokens=7).max_tokens == 7
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    np.testing.assert_array_equal(
        call(theirs, PROMPTS)[0], tokenize(ByteTokenizer(), PROMPTS, 24)[0]
    )


def test_the_identity_tells_encoders_apart(encoder):
    params = jax.tree.map(lambda x: x, encoder.params)
    params["final_norm"]["scale"] = params["final_norm"]["scale"] * 1.001
    others = [
        encoder,
        dataclasses.replace(encoder, params=params),
        dataclasses.replace(encoder, max_tokens=MAX_TOKENS + 1),
        dataclasses.replace(encoder, tokenizer=ByteTokenizer()),
    ]
    assert len({other.identity for other in others}) == len(others)


def rewrite(**changes):
    """Breaks a config.json; None removes an entry."""

    def change(root):
        file = root / "text_encoder" / "config.json"
        raw = json.loads(file.read_text()) | changes
        file.write_text(
            json.dumps({name: value for name, value in raw.items() if value is not None})
        )

    return change


def rename(old, new):
    """Renames a tensor, or drops it for None."""

    def change(root):
        files = sorted((root / "text_encoder").glob("*.safetensors"))
        content = {k: v for file in files for k, v in load_file(file).items()}
        for file in (root / "text_encoder").glob("model*"):
            file.unlink()
        content |= {new: content.pop(old)} if new else {old: content.pop(old)[:-1]}
        save_file(content, root / "text_encoder" / "model.safetensors")

    return change


def remove(*names):
    def change(root):
        for name in names:
            for path in root.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def truncate(root):
    file = sorted((root / "text_encoder").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-10])


def overwrite(name, content):
    return lambda root: (root / name).write_bytes(content)


WQ = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("tokenizer"), "holds no tokenizer"),
        (remove("tokenizer/spiece.model"), r"no tokenizer.json and no spiece.model"),
        (remove("text_encoder"), "is no text encoder: it holds neither config.json"),
        (remove("text_encoder/model-00002*"), r"lacks \['model-00002-of-.* lists: fetch them"),
        (remove("text_encoder/model*"), "holds no model.safetensors"),
        (rewrite(model_type="umt5"), "of type 'umt5'"),
        (
            rewrite(feed_forward_proj=None),
            "feed_forward_proj is missing, which means 'relu'; supported: 'gated-g",
        ),
        (rewrite(feed_forward_proj="gated-silu"), "'gated-silu'"),
        (rewrite(d_kv=None), "no positive number as d_kv"),
        (rewrite(num_layers=4), r"encoder.block.3.layer.0.SelfAttention"),
        (rewrite(num_layers=2), r"unexpected.*encoder.block.2.layer.0"),
        (rewrite(d_ff=50), r"wi_0.weight has shape \(48, 32\), expected \(50, 32\)"),
        (rewrite(vocab_size=100), "shared.weight has shape"),
        (rename(WQ, "encoder.other"), rf"missing: {WQ}; unexpected: encoder.other"),
        (rename(WQ, None), rf"{WQ} has shape \(23, 32\), expected \(24, 32\)"),
        (truncate, "truncated"),
        (overwrite("text_encoder/config.json", b"{"), "not readable as JSON"),
        (overwrite("tokenizer/tokenizer_config.json", b"{"), "not readable as JSON"),
        (
            overwrite("tokenizer/spiece.model", b"damaged"),
            "not readable as the vocabulary of a 't5'",
        ),
        (overwrite("tokenizer/spiece.model", b""), "is not T5's vocabulary: its ids of"),
    ],
)
def test_a_broken_directory_is_an_error_that_says_what(pixart, tmp_path, change, message):
    root = shutil.copytree(pixart, tmp_path / "copy")
    change(root)
    with pytest.raises(ValueError, match=message):
        TextEncoder.load(root, dtype="float32")


def test_arguments_that_make_no_sense_are_errors(encoder, tmp_path):
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        dataclasses.replace(encoder, max_tokens=0)
    with pytest.raises(ValueError, match="384 ids and the text encoder 383 embeddings"):
        TextEncoder(ByteTokenizer(), dataclasses.replace(TINY, vocab_size=383), {})
    for prompts in ([], "a prompt that is no list"):
        with pytest.raises(ValueError, match="must be a list of at least one text"):
            encoder.encode(prompts)
    deeper = dataclasses.replace(encoder.cfg, num_layers=4)
    with pytest.raises(ValueError, match="are not those of"):
        text_encoder_files.save(tmp_path / "a", deeper, encoder.params)
    text_encoder_files.save(tmp_path / "b", encoder.cfg, encoder.params)
    with pytest.raises(ValueError, match="already holds safetensors"):
        text_encoder_files.save(tmp_path / "b", encoder.cfg, encoder.params)


@pytest.mark.thorough
def test_no_torch_is_needed_and_transformers_only_for_a_vocabulary(pixart):
    program = """
import sys
sys.modules["torch"] = None  # an import raises
import jax
jax.config.update("jax_platforms", "cpu")
from ltx_jax.inference.text_encoder import TextEncoder
assert "transformers" not in sys.modules
encoder = TextEncoder.load(sys.argv[1], dtype="float32", max_tokens=24)
print(float(abs(encoder.encode(["a red square grows"])[0]).mean()))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, pixart],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) > 0.1
    assert "PyTorch" not in result.stderr
