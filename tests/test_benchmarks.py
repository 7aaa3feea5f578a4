"""The benchmarks run, count right and survive what fails; nothing here asserts a time."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltx_jax import sharding

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def test_first_gpu_records_what_fails_and_goes_on(tmp_path):
    command = [sys.executable, str(FOLDER / "first_gpu.py"), "--scale", "tiny", "--repeats", "2"]
    options = ["--sections", "peak", "attention", "--out", str(tmp_path), "--name", "cpu"]
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "HOME": str(tmp_path)}
    result = subprocess.run(
        command + options, capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "cpu.json").read_text())
    status = {row["case"]: row["status"] for row in report["rows"]}
    assert status["read and write"] == "ok"
    assert status["2 heads of 64, 32 tokens, ours, plain"] == "ok"
    assert status["2 heads of 64, 32 tokens, cuDNN"] == "failed"  # there is none on a CPU
    assert report["facts"]["jax"]
    assert set(report["facts"]["seconds"]) == {"peak", "attention"}
    for row in report["rows"]:
        assert row["status"] != "failed" or row["message"]
        # bfloat16 keeps 8 bits: an error of some 1e-2 of the typical value is rounding.
        assert row.get("error", 0) < 0.1, row
    assert "| 2 heads of 64, 32 tokens, ours, plain |" in (tmp_path / "cpu.md").read_text()


def test_a_spent_budget_skips_instead_of_running(benchmarks, tmp_path):
    import harness

    report = harness.Report(tmp_path, "none", budget=-1.0, repeats=3)
    report.compare("peak", [harness.Case("never", jnp.sin, (jnp.ones(3),))])
    assert [(row["case"], row["status"]) for row in report.rows] == [("never", "skipped")]


def test_operations_of_scans_and_convolutions_are_all_counted(benchmarks):
    import harness
    from jax import lax

    def layers(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert harness.count_flop(layers, jnp.ones((5, 8)), jnp.ones((3, 8, 8))) == 3 * 2 * 5 * 8 * 8

    def conv(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    counted = harness.count_flop(conv, jnp.ones((2, 7, 6, 4)), jnp.ones((3, 3, 4, 5)))
    assert counted == 2 * (2 * 7 * 6 * 5) * (3 * 3 * 4)

    def either(x, w):
        return lax.platform_dependent(x, w, cpu=lambda x, w: x @ w, default=jnp.matmul)

    assert harness.count_flop(either, jnp.ones((5, 8)), jnp.ones((8, 8))) == 2 * 5 * 8 * 8


def test_the_full_scale_is_the_released_model(benchmarks):
    """Operations are those of the released 2B model and its VAE, which others have counted too."""
    import harness
    import networks
    import sizes

    scale = sizes.Scale()
    assert np.prod(scale.grid) == scale.rows[0] == 6144
    module = networks.VideoVAE(scale.vae)
    side, frames = scale.vae.spatial_factor, scale.vae.temporal_factor + 1
    video = jax.ShapeDtypeStruct((1, frames, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: sharding.unbox(module.init(jax.random.key(0), x)), video)
    latents = jax.ShapeDtypeStruct((1, *scale.grid, scale.vae.latent_channels), jnp.bfloat16)

    def decode(params, latents):
        return module.apply(params, latents, jnp.zeros(1), method="decode")

    assert harness.count_flop(decode, shapes, latents) / 1e12 == pytest.approx(60.2, rel=0.01)
