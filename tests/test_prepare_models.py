"""Scores and captions by models of `transformers`: the real loading code, on tiny random models."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra `prepare`: pip install '.[prepare]'")
pytest.importorskip("cv2", reason="needs the extra `prepare`: pip install '.[prepare]'")

import cv2
import torch
import transformers
from safetensors.torch import save_file

from ltx_jax.config import AestheticsConfig, CaptionsConfig, PrepareConfig, TextConfig
from ltx_jax.data import writing
from ltx_jax.data.filters import lettering
from ltx_jax.prepare import aesthetics, captioner, pretrained, scoring
from ltx_jax.prepare.records import ClipRecord
from ltx_jax.prepare.result_cache import ResultCache

WORDS = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "USER", ":", "a", "dog", "runs", "Describe"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    cfg = transformers.CLIPConfig(
        text_config={**sides, "num_attention_heads": 2, "vocab_size": 64},
        vision_config={**sides, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    transformers.CLIPModel(cfg).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A tiny LLaVA with its processor in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = str(tmp_path_factory.mktemp("llava"))
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.add_special_tokens(["<image>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    template = (
        "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    cfg = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **sides, num_attention_heads=2, image_size=16, patch_size=8
        ),
        text_config=transformers.LlamaConfig(
            **sides, num_attention_heads=2, num_key_value_heads=2, vocab_size=len(WORDS)
        ),
        image_token_index=WORDS.index("<image>"),
    )
    transformers.LlavaForConditionalGeneration(cfg).save_pretrained(folder)
    return folder


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 40, 56, 3), np.uint8)


@pytest.mark.thorough
def test_a_score_is_the_head_on_the_encoders_embedding(clip, tmp_path):
    weight = torch.randn(1, 12)
    save_file({"weight": weight, "bias": torch.tensor([0.25])}, tmp_path / "head.safetensors")
    score = aesthetics.Scorer(clip, str(tmp_path / "head.safetensors"))(pictures(3))
    model = transformers.CLIPModel.from_pretrained(clip)
    processor = transformers.CLIPImageProcessor.from_pretrained(clip)
    inputs = processor(images=list(pictures(3)), return_tensors="pt")
    with torch.no_grad():
        pooled = model.vision_model(**inputs).pooler_output
        embeddings = model.visual_projection(pooled)
    embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
    assert score == pytest.approx(float((embeddings @ weight.T + 0.25).mean()), abs=1e-5)


@pytest.mark.thorough
def test_laions_heads_load(tmp_path):
    """LAION's larger head consists of linear layers without activations."""
    linear = torch.nn.Linear(12, 1)
    torch.save(linear.state_dict(), tmp_path / "linear.pth")
    layers = torch.nn.Sequential(
        torch.nn.Linear(12, 16), torch.nn.Dropout(), torch.nn.Linear(16, 4), torch.nn.Linear(4, 1)
    ).eval()
    tensors = {f"layers.{name}": value for name, value in layers.state_dict().items()}
    torch.save(tensors, tmp_path / "larger.pth")
    x = torch.randn(5, 12)
    for name, module in (("linear", linear), ("larger", layers)):
        weight, bias = aesthetics.load_head(str(tmp_path / f"{name}.pth"))
        expected = module(x).detach().numpy()[:, 0]
        np.testing.assert_allclose(x.numpy() @ weight + bias, expected, atol=1e-5)
    torch.save({"other": x}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"wrong.pth is not an aesthetic head"):
        aesthetics.load_head(str(tmp_path / "wrong.pth"))


@pytest.mark.thorough
def test_a_head_that_is_trained_on_pairs_orders_pairs_that_it_has_not_seen():
    """A tenth of the training pairs is swapped; the head is tested on the order of true scores."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=32)
    embeddings = rng.normal(size=(4000, 32)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    one, other = embeddings[:2000], embeddings[2000:]
    swap = ((one - other) @ truth > 0) ^ (rng.random(2000) < 0.1)
    better, worse = np.where(swap[:, None], one, other), np.where(swap[:, None], other, one)
    weight = aesthetics.fit(better[:1600], worse[:1600], 1e-4)
    held_out = (one - other)[1600:]
    assert np.mean(np.sign(held_out @ weight) == np.sign(held_out @ truth)) >= 0.95


@pytest.mark.thorough
def test_the_command_trains_a_head_on_pairs_within_labels(clip, tmp_path, capsys):
    from ltx_jax.prepare.__main__ import main

    rng = np.random.default_rng(2)
    lines = ["better,worse,better_labels,worse_labels"]
    for i in range(60):
        for name, level in (("b", 170), ("w", 80)):  # brighter is better
            picture = rng.normal(level, 20, (24, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / f"{name}{i}.png")
        lines.append(f"b{i}.png,w{i}.png,dog beach,{'cat' if i % 6 == 0 else 'dog'}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    output = tmp_path / "heads" / "head.safetensors"
    arguments = [str(tmp_path / "pairs.csv"), "--encoder", clip, "--output", str(output)]
    assert main(["aesthetics-train", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "50 pairs, 10 left out" in printed
    assert "orders 100.0 % of the held-out pairs correctly" in printed
    score = aesthetics.Scorer(clip, str(output))
    bright, dark = np.full((2, 1, 24, 24, 3), [[[[[180]]]], [[[[60]]]]], np.uint8)
    assert score(bright) > score(dark)
    (tmp_path / "pairs.csv").write_text("left,right\na,b\n")
    assert main(["aesthetics-train", *arguments]) == 2
    assert "columns better and worse" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_caption_is_what_the_model_writes_for_the_pictures(llava):
    cfg = CaptionsConfig(model=llava, prompt="Describe", max_tokens=6)
    write = captioner.Captioner(cfg)
    caption = write(pictures(2))
    assert caption
    assert len(caption.split()) <= 6
    assert set(caption.split()) <= set(WORDS)
    assert captioner.Captioner(cfg)(pictures(2)) == caption
    # The model gets all pictures: an independent call of it writes the same caption.
    processor = transformers.LlavaProcessor.from_pretrained(llava)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(llava)
    images = [Image.fromarray(picture) for picture in pictures(2)]
    inputs = processor(text="USER : <image> <image> Describe ", images=images, return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    text = processor.tokenizer.decode(
        answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert caption == " ".join(text.split())


@pytest.mark.thorough
def test_scores_and_captions_are_kept_and_models_loaded_once(clip, llava, tmp_path, monkeypatch):
    frames = [np.full((32, 48, 3), level, np.uint8) for level in range(0, 240, 10)]
    films = []
    for i in range(3):
        writing.write_video(tmp_path / f"{i}.mp4", np.stack(frames[8 * i :][:8]), 8)
        fields = {"digest": str(i), "number": 0, "seconds": 1.0, "crop": (0, 0, 32, 48)}
        films.append(
            ClipRecord(source=str(tmp_path / f"{i}.mp4"), captions=(("file", "told"),), **fields)
        )
    head = tmp_path / "head.safetensors"
    save_file({"weight": torch.randn(1, 12), "bias": torch.zeros(1)}, head)
    cfg = PrepareConfig(
        text=TextConfig(max_share=None),
        aesthetics=AestheticsConfig(clip, str(head)),
        captions=CaptionsConfig(model=llava, prompt="Describe", max_tokens=6),
    )
    loads, load = [], pretrained._load
    load.cache_clear()

    def counting_load(name, *kinds):
        before = load.cache_info().misses
        found = load(name, *kinds)
        loads.extend([name] * (load.cache_info().misses - before))
        return found

    monkeypatch.setattr(pretrained, "_load", counting_load)
    cache = ResultCache(tmp_path / "shelf")
    scoring.check_models(cfg)
    assert loads == []
    first = [
        *scoring.score_clips(films[:2], cfg, cache),
        *scoring.score_clips(films[2:], cfg, cache),
    ]
    assert loads == [clip, llava]
    for judged in first:
        (model, written), original = judged.captions
        assert model == llava
        assert written
        assert original == ("file", "told")
    scores = sorted(judged.aesthetics for judged in first)
    assert scores[0] < scores[2]
    # Another threshold loads no model.
    monkeypatch.setattr(pretrained, "_load", None)
    strict = dataclasses.replace(cfg.aesthetics, min_score=scores[1])
    cfg = dataclasses.replace(cfg, aesthetics=strict, captions=CaptionsConfig())
    again = scoring.score_clips(films[:2], cfg, cache) + scoring.score_clips(films[2:], cfg, cache)
    assert [judged.aesthetics for judged in again] == [judged.aesthetics for judged in first]
    assert [judged.reason for judged in again].count("aesthetics") == 1
    # Another head under the same name is loaded.
    monkeypatch.setattr(pretrained, "_load", load)
    save_file({"weight": torch.randn(1, 12), "bias": torch.ones(1)}, head)
    other = scoring.score_clips(films, cfg, cache)
    assert not {judged.aesthetics for judged in other} & {judged.aesthetics for judged in first}


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the image encoder .*nothing cannot be loaded"):
        aesthetics.Encoder(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"the captioner .*nothing cannot be loaded"):
        captioner.Captioner(CaptionsConfig(model=str(tmp_path / "nothing")))


@pytest.mark.thorough
def test_text_is_seen_and_texture_is_not_taken_for_it():
    from benchmarks import synthetic_videos

    rng = np.random.default_rng(3)
    detections = []
    for i in range(12):
        height, width = ((180, 320), (360, 640), (540, 960))[i % 3]
        [frame] = synthetic_videos.take("still", rng, 1, height, width, 25)
        frame = frame.astype(np.uint8)
        assert lettering.text_fraction(frame[None]) == 0
        size, place = height / 300, (width // 12, int(height * 0.92))
        for colour, thickness in (((0, 0, 0), 5), ((240, 240, 240), 2)):
            width_of_line = max(round(thickness * size), 1)
            cv2.putText(
                frame, "what did you say then", place, 0, size, colour, width_of_line, cv2.LINE_AA
            )
        detections.append(lettering.text_fraction(frame[None]) > 0.02)
    assert np.mean(detections) >= 0.75


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_a_head_that_is_cut_off_is_one_line(ending, length, tmp_path):
    state, path = torch.nn.Linear(12, 1).state_dict(), tmp_path / f"head.{ending}"
    if ending == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"head.{ending} is not an aesthetic head") as no:
        aesthetics.load_head(str(path))
    assert "\n" not in str(no.value)


def test_a_pickle_of_other_objects_is_one_line(tmp_path):
    (tmp_path / "head.pth").write_bytes(pickle.dumps({"weight": object}))
    with pytest.raises(ValueError, match=r"head.pth is not an aesthetic head") as no:
        aesthetics.load_head(str(tmp_path / "head.pth"))
    assert "\n" not in str(no.value)
