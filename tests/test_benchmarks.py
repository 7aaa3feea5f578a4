"""The benchmarks run, count right and survive what fails; nothing here asserts a time."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness, run

ROOT = pathlib.Path(__file__).parents[1]


def test_one_door_records_what_fails_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "benchmarks.run", "attention", "--scale", "tiny"]
    options = ["--repeats", "2", "--out", str(tmp_path), "--name", "cpu"]
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "HOME": str(tmp_path)}
    result = subprocess.run(
        command + options, capture_output=True, text=True, env=environment, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "cpu.json").read_text())
    status = {row["case"]: row["status"] for row in report["rows"]}
    assert status["read and write"] == "ok"
    assert status["2 heads of 64, 32 tokens, ours, plain"] == "ok"
    assert status["2 heads of 64, 32 tokens, cuDNN"] == "failed"  # there is none on a CPU
    assert report["facts"]["jax"]
    assert set(report["facts"]["seconds"]) == {"ceilings", "attention"}
    for row in report["rows"]:
        assert row["status"] != "failed" or row["message"]
        # bfloat16 keeps 8 bits: an error of some 1e-2 of the typical value is rounding.
        assert row.get("error", 0) < 0.1, row
    assert "| 2 heads of 64, 32 tokens, ours, plain |" in (tmp_path / "cpu.md").read_text()
    line = next(row for row in report["rows"] if row["case"].endswith("ours, plain"))
    asked = {"dtype", "branches", "shapes", "median_s", "fastest_s", "slowest_s", "compile_s"}
    assert asked <= line.keys()
    assert line["tflops"] == pytest.approx(line["tflop"] / line["median_s"])
    ceiling = report["facts"]["ceilings"]["tflops"]
    assert line["share_of_products"] == pytest.approx(line["tflops"] / ceiling)


FIRST = """
import importlib, sys, jax, flax.linen
def packages():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
before = packages()
from benchmarks import first_gpu, run
for section in first_gpu.SECTIONS:
    importlib.import_module(f"benchmarks.{run.SECTIONS[section].args[0]}")
print(*sorted(name for name in packages() - before if not name.startswith("_")))
"""


def test_the_first_gpu_needs_jax_flax_and_numpy_alone():
    """And jaxtyping, which is pure Python."""
    result = subprocess.run(
        [sys.executable, "-c", FIRST], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.split() == ["benchmarks", "jaxtyping", "ltx_jax"]


def test_what_diffusers_has_not_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["loading", "--against", "diffusers"])
    assert "take vae, transformer, training" in capsys.readouterr().err


def test_cases_of_two_libraries_are_timed_in_turn(tmp_path):
    order = []

    def foreign():
        order.append("made")
        return lambda: order.append("theirs")

    def ours(x):
        return jnp.sin(x)

    report = harness.Report(tmp_path, "none", budget=60.0, repeats=3)
    cases = [
        harness.Case("ours", ours, (jnp.ones(3),), flop=3e12),
        harness.Foreign("theirs", foreign, flop=3e12, facts={"dtype": "float32"}),
    ]
    report.compare("both", cases)
    assert order == ["made"] + ["theirs"] * 4  # the first one compiles
    assert [row["case"] for row in report.rows] == ["ours", "theirs"]
    assert all(np.isfinite(row["tflops"]) for row in report.rows)


def test_a_spent_budget_skips_instead_of_running(tmp_path):
    report = harness.Report(tmp_path, "none", budget=-1.0, repeats=3)
    report.compare("ceilings", [harness.Case("never", jnp.sin, (jnp.ones(3),))])
    assert [(row["case"], row["status"]) for row in report.rows] == [("never", "skipped")]
