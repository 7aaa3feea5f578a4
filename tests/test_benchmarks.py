"""The benchmarks run, count right and survive what fails; nothing here asserts a time."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled
from tiny_checkpoint import write_exported

from benchmarks import harness, headline, loading, networks, run, shortcuts, sizes, training
from ltx_jax.runtime import sharding

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def settings_of_jax():
    """The benchmarks are commands of their own: what they set is not for the next test."""
    settings = ("jax_enable_compilation_cache", "jax_numpy_rank_promotion")
    before = {name: getattr(jax.config, name) for name in settings}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.parametrize(
    ("option", "told"),
    [("--only=2B/float9", "unknown float9; known words: 2B"), ("--tokens=5", "one of 32")],
)
def test_cases_that_there_are_not_are_refused(option, told, capsys):
    with pytest.raises(SystemExit):
        run.main(["headline", "--scale", "tiny", option])
    assert told in capsys.readouterr().err


def test_cases_are_picked_in_the_order_asked_for():
    words = (frozenset({"13B", "int8"}), frozenset({"2B"}), frozenset())
    scale = dataclasses.replace(sizes.TINY, only=words)
    axes = (sizes.MODELS, ["2B"]), (tuple(sizes.LINEARS), ["none", "float8"])
    assert list(sizes.pick(scale, *axes)) == [
        [["13B"], ["int8"]],
        [["2B"], ["none", "float8"]],
        [["2B"], ["none", "float8"]],
    ]


def test_ceilings_may_come_from_an_earlier_report(tmp_path, monkeypatch):
    monkeypatch.setitem(run.SECTIONS, "vae", lambda report, scale: report.add("vae", "x", tflops=3))
    before = {"facts": {"ceilings": {"tflops": 4.0}}}
    (tmp_path / "before.json").write_text(json.dumps(before))
    options = ["--scale", "tiny", "--out", str(tmp_path), "--name", "after"]
    run.main(["vae", *options, "--ceilings", str(tmp_path / "before.json")])
    rows = json.loads((tmp_path / "after.json").read_text())["rows"]
    assert [(row["case"], row["share_of_products"]) for row in rows] == [("x", 0.75)]


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


@pytest.mark.thorough
def test_what_takes_too_long_to_make_is_given_up_and_the_rest_is_timed(tmp_path):
    def endless():
        while True:
            time.sleep(0.01)

    report = harness.Report(tmp_path, "none", budget=2.0, repeats=3)
    ready = harness.Foreign("ready", lambda: lambda: None)
    report.compare("both", [ready, harness.Foreign("endless", endless)])
    found = {row["case"]: (row["status"], row.get("samples")) for row in report.rows}
    assert found == {"endless": ("failed", None), "ready": ("ok", 3)}


@pytest.mark.thorough
def test_parameters_are_drawn_as_networks_draw_them():
    """Same shapes; kernels as large, to 5 % or what few values allow, and unlike."""
    net = networks.network(sizes.TINY.of("float32"))
    want = sharding.unbox(compiled(net.model.init)(jax.random.key(0), *net.inputs)["params"])
    assert jax.tree.map(jnp.shape, net.params) == jax.tree.map(jnp.shape, want)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(net.params))
    attention, drawn = net.params["blocks"]["attn1"], want["blocks"]["attn1"]
    for name in ("to_q", "to_out"):
        ours, theirs = (float(jnp.std(x[name]["kernel"])) for x in (attention, drawn))
        assert ours == pytest.approx(theirs, rel=0.05)
    q, k = (np.ravel(attention[name]["kernel"]) for name in ("to_q", "to_k"))
    assert abs(np.corrcoef(q, k)[0, 1]) < 0.05
    assert not attention["to_q"]["bias"].any()
    assert (attention["q_norm"]["scale"] == 1).all()


@pytest.fixture
def run_tiny(tmp_path, monkeypatch):
    """Runs a section at the smallest sizes, once each; returns its rows."""
    monkeypatch.setattr(headline, "RUNS", 1)
    monkeypatch.setattr(training, "STEPS", 1)
    monkeypatch.setattr(training, "FLOW", training.FLOW[:1])
    monkeypatch.setattr(training, "VAE", training.VAE[:1])
    monkeypatch.setattr(loading, "WARM", 1)
    monkeypatch.setattr(loading, "STEPS", 2)

    def rows(*arguments):
        options = ["--scale", "tiny", "--dtype", "float32", "--repeats", "1"]
        run.main([*arguments, *options, "--out", str(tmp_path), "--name", "tiny"])
        return json.loads((tmp_path / "tiny.json").read_text())["rows"]

    jax.config.update("jax_numpy_rank_promotion", "allow")  # some of diffusers' and flax's do
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("section", run.SECTIONS)
def test_every_section_runs_to_its_end(section, run_tiny):
    rows = [row for row in run_tiny(section) if row["section"] == section]
    assert any(row["status"] == "ok" for row in rows)
    for row in rows:  # but for what is of a GPU alone
        on_gpu = "cuDNN" in row["case"] or "Mosaic" in row["case"]
        assert row["status"] == "ok" or on_gpu, row


@pytest.mark.slow
def test_the_headline_measures_what_is_asked_for(run_tiny):
    rows = run_tiny("headline", "--only", "13B/int8/plain", "2B/none/teacache")
    assert [row["case"] for row in rows if row["section"] == "headline"] == [
        "13B, int8 linears",
        "13B, int8 linears, 2 steps",
        "13B, int8 linears, 2 steps: the loop",
        "2B",
        "2B, 2 steps, TeaCache 0.05, 2 computed",  # the first and the last always are
        "2B, 2 steps, TeaCache 0.05, 2 computed: the loop",
    ]
    assert all(row["status"] == "ok" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("section", run.AGAINST)
def test_every_comparison_sets_our_best_against_theirs(section, run_tiny, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)  # it takes a minute each
    rows = [r for r in run_tiny(section, "--against", "diffusers") if r["section"] == section]
    assert all(row["status"] == "ok" for row in rows), rows
    ratios = [row for row in rows if "best / diffusers' best" in row["case"]]
    assert len(ratios) == (2 if section == "vae" else 1)
    for row in ratios:
        part = row["case"].partition(":")[0]
        medians = {"ours": [], "diffusers": []}
        for other in rows:
            if other["case"].startswith(f"{part}, "):
                whose = "diffusers" if "diffusers" in other["case"] else "ours"
                medians[whose].append(other["median_s"])
        assert row["ratio"] == pytest.approx(min(medians["ours"]) / min(medians["diffusers"]))


@pytest.mark.slow
def test_what_shortcuts_change_is_told_of_any_exported_model(tmp_path, monkeypatch):
    forms = {
        "exact": ({}, {}),
        "int8 linears": ({"linears": "int8"}, {}),
        "TeaCache 0": ({}, {"teacache": 1e-9}),
        "TeaCache 1000": ({}, {"teacache": 1000.0}),
    }
    monkeypatch.setattr(shortcuts, "FORMS", forms)
    out = tmp_path / "table"
    # Three steps: the first and the last are computed whatever the threshold.
    folder = write_exported(tmp_path / "model", num_inference_steps=3)
    assert shortcuts.main([str(folder), "--prompt", "a", "b", "--out", str(out)]) == 0
    found = {
        (figure["of"], figure["name"]): figure["value"]
        for figure in json.loads(out.with_suffix(".json").read_text())["figures"]
    }
    change = "change of the latents"
    assert 0 < found["int8 linears", change] < 5
    assert found["TeaCache 0", change] < 1e-3 < found["TeaCache 1000", change]
    assert found["TeaCache 0", "steps computed"] == 100
    assert found["TeaCache 1000", "steps computed"] == pytest.approx(200 / 3)
