"""A text encoder of another family than T5: all that it takes is a configuration and a network."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from flax import linen as nn
from safetensors.numpy import load_file
from tiny_stages import load

from ltx_jax.checkpoints import run_config, text_encoder_files
from ltx_jax.config import ExecutionConfig, T5Config, TextEncoderConfig
from ltx_jax.inference.text_encoder import ByteTokenizer, TextEncoder, tokenize
from ltx_jax.models.text_network import TextNetwork, TokenEmbedding, linear, rms_norm, text_network
from ltx_jax.runtime import sharding
from ltx_jax.training.transformer import sources


class MeanLayer(nn.Module):
    """Adds a linear function of the mean over all tokens up to each one."""

    cfg: "MeanConfig"
    execution: ExecutionConfig

    @nn.compact
    def __call__(self, x):
        count = jnp.arange(1, x.shape[1] + 1)[None, :, None]
        h = rms_norm(self.execution, 1e-5, "norm")(jnp.cumsum(x, axis=1) / count)
        return x + linear(self.execution, x.shape[-1], ("embed", "mlp"), "mlp.proj")(h), None


class MeanEncoder(TextNetwork):
    identity_parameters = ("layers/norm/scale",)
    file_settings: ClassVar = {"pooling": (("mean",), "mean"), "gated": ((False,), False)}
    file_prefix, file_ignored = "model.", r"lm_head\..*"

    @nn.compact
    def __call__(self, token_ids, mask):
        embedding = TokenEmbedding(self.cfg.vocab_size, self.cfg.width, name="embed_tokens")
        x = self.repeat(MeanLayer, self.cfg.depth, "layers", embedding(token_ids))
        return x.astype(self.execution.dtype)


@dataclasses.dataclass(frozen=True)
class MeanConfig(TextEncoderConfig):
    network: ClassVar[str] = f"{__name__}:MeanEncoder"
    model_type: ClassVar[str] = "mean"
    width_field: ClassVar[str] = "dim"

    vocab_size: int = 384
    dim: int = 16
    depth: int = 2


@pytest.fixture(scope="module")
def params():
    ids = jnp.zeros((1, 4), jnp.int32)
    return sharding.unbox(text_network(MeanConfig()).init(jax.random.key(0), ids, ids))["params"]


@pytest.fixture
def encoder(params):
    return TextEncoder(ByteTokenizer(), MeanConfig(), params, 8)


def training():
    return dataclasses.replace(load("transformer"), text_encoder=MeanConfig())


def test_it_is_saved_and_loaded_with_names_made_from_its_paths(encoder, tmp_path):
    encoder.save(tmp_path)
    stored = load_file(tmp_path / "text_encoder" / "model.safetensors")
    kernel = encoder.params["layers"]["mlp.proj"]["kernel"]
    np.testing.assert_array_equal(stored["layers.1.mlp.proj.weight"], kernel[1].T)
    assert set(stored) == {"embed_tokens.weight"} | {
        f"layers.{i}.{name}.weight" for i in range(2) for name in ("norm", "mlp.proj")
    }
    again = TextEncoder.load(tmp_path, dtype="float32")
    assert (again.cfg, again.max_tokens, again.identity) == (MeanConfig(), 8, encoder.identity)
    embeds, mask = again.encode(["red", ""])
    expected = encoder.encode(["red", ""])[0]
    np.testing.assert_array_equal(embeds, expected)
    assert mask.tolist() == [[1] * 4 + [0] * 4, [1] + [0] * 7]


def test_its_file_may_have_a_prefix_and_other_parts(encoder, tmp_path):
    encoder.save(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    whole = {f"model.{name}": array for name, array in load_file(file).items()}
    text_encoder_files.tensors.write_file(
        file,
        {
            name: text_encoder_files.tensors.pending(array)
            for name, array in (whole | {"lm_head.weight": np.ones(3, np.float32)}).items()
        },
        {},
    )
    again = TextEncoder.load(tmp_path, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, again.params, encoder.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "max"}, r"pooling is 'max'; supported: 'mean'"),
        ({"gated": True}, r"gated is True; supported: False"),
        ({"depth": 0}, "gives no positive number as depth"),
        ({"model_type": "median"}, r"of type 'median'; supported: 't5'.*'mean'"),
    ],
)
def test_a_file_of_something_else_is_refused(encoder, tmp_path, change, message):
    encoder.save(tmp_path)
    file = tmp_path / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        TextEncoder.load(tmp_path)


def test_its_identity_covers_its_small_parameters(encoder):
    changed = jax.tree.map(lambda x: x, encoder.params)
    changed["layers"]["norm"]["scale"] = changed["layers"]["norm"]["scale"] * 1.001
    assert encoder.identity != dataclasses.replace(encoder, params=changed).identity


def test_a_run_stores_which_it_trains(tmp_path):
    run_config.write_config(tmp_path, training())
    assert run_config.read_config(tmp_path) == training()


def test_a_run_of_an_older_version_has_a_t5(tmp_path):
    run_config.write_config(tmp_path, load("transformer"))
    file = tmp_path / run_config.CONFIG
    content = json.loads(file.read_text())
    assert content["config"]["text_encoder"].pop("type") == T5Config.__name__
    file.write_text(json.dumps(content))
    assert run_config.read_config(tmp_path) == load("transformer")


def test_a_run_goes_on_with_no_other_text_encoder(tmp_path):
    with pytest.raises(ValueError, match=r"text_encoder.type = 'T5Config', and now it is 'MeanC"):
        run_config.check_same(load("transformer"), training(), run_config.locate(tmp_path))


@pytest.mark.thorough
def test_it_trains_with_the_transformer():
    captions = sources.trained_captions(training())
    params = sharding.unbox(captions.init(jax.random.key(0)))
    arrays = captions.read(["red", "blue"], None, np.array([False, True]), jax.device_put)

    def total(params):
        embeds, mask = captions.embed(params, arrays)
        return jnp.sum(jnp.square(embeds) * mask[..., None])

    gradient = jax.grad(total)(params)["text_encoder"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    cut = captions.embed(params, jax.tree.map(lambda x: x[:, :4], arrays))[0]
    # No token depends on padding after it; sums of another length round differently.
    np.testing.assert_allclose(captions.embed(params, arrays)[0][:, :4], cut, atol=1e-6)


def test_special_ids_are_those_of_its_tokenizer(params, encoder, tmp_path):
    words = {"<s>": 0, "</s>": 1, "a": 2, "red": 3, "star": 4, "<unk>": 5}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    text_encoder_files.save(tmp_path, MeanConfig(), params)
    transformers.PreTrainedTokenizerFast(tokenizer_object=model).save_pretrained(tmp_path)
    loaded = TextEncoder.load(tmp_path, dtype="float32", max_tokens=4)
    assert loaded.identity.startswith("mean-")
    ids, mask = tokenize(loaded.tokenizer, ["a red star", "red", ""], 4)
    assert ids.tolist() == [[0, 2, 3, 1], [0, 3, 1, 0], [0, 1, 0, 0]]
    assert mask.sum(axis=1).tolist() == [4, 3, 2]
    with pytest.raises(ValueError, match="max_tokens must be at least 2, got 1"):
        dataclasses.replace(loaded, max_tokens=1)
