"""What references are drawn from clips: edges, and depth by a model of transformers."""

import sys

import numpy as np
import pytest

from ltx_jax.data import preprocessors, video, writing
from ltx_jax.prepare.__main__ import main as prepare

SQUARE = np.full((3, 64, 96, 3), 30, np.uint8)
SQUARE[:, 16:48, 24:72] = 220


def test_edges_lie_around_a_square():
    drawn = preprocessors.preprocessor("canny")(SQUARE)
    assert (drawn.shape, drawn.dtype) == (SQUARE.shape, np.uint8)
    assert set(np.unique(drawn)) == {0, 255}
    rows, columns = np.nonzero(drawn[1, ..., 0])
    assert (rows.min(), rows.max()) in {(15, 47), (15, 48), (16, 47), (16, 48)}
    assert (columns.min(), columns.max()) in {(23, 71), (23, 72), (24, 71), (24, 72)}
    assert not drawn[:, 24:40, 32:64].any()
    np.testing.assert_array_equal(drawn[..., 0], drawn[..., 2])


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    preprocessors.preprocessor.cache_clear()
    with pytest.raises(ValueError, match=r"edges need OpenCV: pip install 'ltx-jax\[prepare\]'"):
        preprocessors.preprocessor("canny")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"depth by x needs PyTorch"):
        preprocessors.preprocessor("depth:x")


@pytest.mark.parametrize("name", ["depth", "depth:", "pose", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="take canny or depth:MODEL"):
        preprocessors.preprocessor(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A depth model of transformers with random weights."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2"],
        reshape_hidden_states=False,
    )
    cfg = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        patch_size=14,
    )
    folder = tmp_path_factory.mktemp("depth")
    transformers.DepthAnythingForDepthEstimation(cfg).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    transformers.DPTImageProcessor(size=size, ensure_multiple_of=14).save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_depth_is_that_of_the_model_with_one_scale_for_the_clip(model):
    import torch
    import transformers
    from PIL import Image

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 40, 60, 3), np.uint8)
    drawn = preprocessors.preprocessor(f"depth:{model}")(frames)
    assert (drawn.shape, drawn.dtype, drawn.min(), drawn.max()) == (frames.shape, np.uint8, 0, 255)
    estimate = transformers.pipeline("depth-estimation", model=str(model), device="cpu")
    with torch.inference_mode():
        depths = [estimate(Image.fromarray(x))["predicted_depth"].numpy() for x in frames]
    depths = np.stack(depths)
    want = (depths - depths.min()) / (depths.max() - depths.min()) * 255
    assert np.abs(drawn[..., 0] - want).max() <= 0.51


def test_a_model_that_is_none_is_named(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=f"the depth model {tmp_path} cannot be loaded: "):
        preprocessors.preprocessor(f"depth:{tmp_path}")


@pytest.mark.thorough
def test_references_are_written_beside_clips_that_have_none(tmp_path, capsys):
    for name in ("a", "b"):
        writing.write_video(tmp_path / f"{name}.mp4", SQUARE, 12)
    (tmp_path / "b.txt").write_text("a square")
    writing.write_video(tmp_path / "b_reference.mp4", 255 - SQUARE, 12)
    before = (tmp_path / "b_reference.mp4").read_bytes()
    for count in (1, 0):
        assert prepare(["references", str(tmp_path), "--preprocessor", "canny"]) == 0
        assert f"{count} references written" in capsys.readouterr().err
    assert (tmp_path / "b_reference.mp4").read_bytes() == before
    drawn, rate = video.read_video(tmp_path / "a_reference.mp4")
    assert (drawn.shape, rate) == (SQUARE.shape, 12)
    want = preprocessors.canny(video.read_video(tmp_path / "a.mp4")[0])
    assert np.abs(drawn.astype(int) - want).mean() < 2
    assert prepare(["references", str(tmp_path / "none"), "--preprocessor", "canny"]) == 2
    assert prepare(["references", str(tmp_path), "--preprocessor", "pose"]) == 2
    assert "take canny or depth:MODEL" in capsys.readouterr().err
