"""The benchmarks run, count right and survive what fails; nothing here asserts a time."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

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
