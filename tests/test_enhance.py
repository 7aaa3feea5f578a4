"""Prompts that a language model rewrites: a tiny random one, saved to disk."""

import json
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra `enhance`: pip install '.[enhance]'")

import torch
import transformers
from tiny_checkpoint import write_exported

from ltx_jax import sample
from ltx_jax.config import SampleConfig

WORDS = ["<unk>", "<pad>", "</s>", "[USER]", "[BOT]", "Idea", ":", "Caption", "a", "fox", "runs"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "[USER] {{ m.content }}{% endfor %}{% if add_generation_prompt %} [BOT]{% endif %}"
)


def write_model(folder, chat_template=None, seed=0):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        chat_template=chat_template,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    cfg = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=None,
        pad_token_id=1,
    )
    transformers.LlamaForCausalLM(cfg).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), TEMPLATE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_exported(tmp_path_factory.mktemp("checkpoint"))


def continuation(folder, text):
    """What the model writes after a text, token by token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    count = ids.shape[1]
    with torch.inference_mode():
        for _ in range(256):
            ids = torch.cat([ids, network(ids).logits[:, -1:].argmax(-1)], 1)
    return " ".join(tokenizer.decode(ids[0, count:], skip_special_tokens=True).split())


@pytest.mark.thorough
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_prompt_is_continued_greedily_in_the_form_that_the_model_knows(template, tmp_path):
    from ltx_jax.inference.enhance import _INSTRUCTION, PromptEnhancer

    folder = write_model(tmp_path, template)
    enhancer = PromptEnhancer(str(folder))
    text = f"{_INSTRUCTION}\n\nIdea: a fox runs"
    text = f"{text}\n\nCaption:" if template is None else f"[USER] {text} [BOT]"
    assert enhancer("a fox runs") == enhancer("a fox runs") == continuation(folder, text)


def test_the_first_paragraph_counts_without_the_reasoning():
    from ltx_jax.inference.enhance import _paragraph

    assert (
        _paragraph("<think>\nhm\n\n</think>\n\n A  fox\truns. \n\nIdea: another") == "A fox runs."
    )
    assert _paragraph(" \n ") == ""


@pytest.mark.thorough
def test_both_prompts_are_in_the_json_which_makes_the_same_video(
    model, checkpoint, tmp_path, capsys
):
    from ltx_jax.inference.enhance import PromptEnhancer

    enhanced = PromptEnhancer(str(model))("a fox")
    common = ["--checkpoint", str(checkpoint), "--dtype", "float32"]
    (tmp_path / "prompts.txt").write_text("a fox\n\n")
    out = tmp_path / "videos"
    run = [*common, "--enhance", str(model), "--prompts_file", str(tmp_path / "prompts.txt")]
    assert sample.main([*run, "--output_path", f"{out}/"]) == 0
    assert f"enhanced prompt: {enhanced}\n" in capsys.readouterr().err
    [path] = out.glob("*.json")
    content = json.loads(path.read_text())
    assert content["enhanced_from"] == {"prompt": "a fox", "model": str(model)}
    assert (content["settings"]["prompt"], content["settings"]["enhance"]) == (enhanced, None)
    # The same run finds its videos; another model's are others.
    assert sample.main([*run, "--output_path", f"{out}/"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    other = [str(tmp_path / "other") if word == str(model) else word for word in run]
    assert sample.main([*other, "--output_path", f"{out}/"]) == 2
    assert "exists with enhance" in capsys.readouterr().err
    again = tmp_path / "again.mp4"
    assert sample.main(["--config", str(path), *common, "--output_path", str(again)]) == 0
    assert again.read_bytes() == path.with_suffix(".mp4").read_bytes()
    assert "enhanced_from" not in json.loads(again.with_suffix(".json").read_text())


def test_what_is_no_model_is_one_line(tmp_path, checkpoint, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["--checkpoint", str(checkpoint), "--prompt", "a fox", "--enhance"]
    assert sample.main([*arguments, str(tmp_path / "empty")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--enhance: the folder {tmp_path / 'empty'} cannot be loaded" in error


def test_without_torch_it_says_what_to_install(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "ltx_jax.inference.enhance", raising=False)
    arguments = ["--checkpoint", str(checkpoint), "--prompt", "a fox", "--enhance", "x"]
    assert sample.main(arguments) == 2
    assert "pip install '.[enhance]'" in capsys.readouterr().err


def test_embeddings_cannot_be_enhanced():
    with pytest.raises(ValueError, match="enhance rewrites prompts, and embeddings take"):
        SampleConfig(enhance="x", embeddings="y.npz")
