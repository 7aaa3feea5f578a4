"""Plans: what is read from compiled programs, the roofline, and a whole plan of a tiny run.

No plugin of an accelerator is needed: programs are compiled for CPUs, or written out here.
"""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_stages import load

from ltx_jax import config
from ltx_jax.checkpoints import keys
from ltx_jax.config import MeshConfig
from ltx_jax.planning import accelerators, hlo, plan
from ltx_jax.planning.accelerators import CHIPS, Target
from ltx_jax.planning.hlo import Collective
from ltx_jax.planning.plan import Roofline
from ltx_jax.runtime import sharding
from ltx_jax.training.step import Trainer
from ltx_jax.training.transformer.stage import TransformerStage
from ltx_jax.training.vae.stage import VAEStage

ROOT = pathlib.Path(__file__).parents[1]
ROW = 4.0 * 64  # bytes of 64 float32
# By kind: on one of four devices, the exchange; bytes that it sends, per byte held; its group.
RING = [(i, (i + 1) % 4) for i in range(4)]
EXCHANGES = {
    "all-gather": (lambda x: lax.all_gather(x, "fsdp", tiled=True).sum(0)[None], 3),
    "all-reduce": (lambda x: lax.pcast(lax.psum(x, "fsdp"), "fsdp", to="varying"), 2 * 3 / 4),
    "reduce-scatter": (
        lambda x: jnp.tile(lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True), (1, 4)),
        3 / 4,
    ),
    "all-to-all": (lambda x: lax.all_to_all(x, "fsdp", 1, 1, tiled=True), 3 / 4),
    "collective-permute": (lambda x: lax.ppermute(x, "fsdp", RING), 1),
}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_an_exchange_in_a_loop_counts_as_often_as_it_runs(kind):
    exchange, share = EXCHANGES[kind]
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    rows = NamedSharding(mesh, P("fsdp"))

    def loop(x):
        return lax.fori_loop(0, 5, lambda i, x: jnp.sin(exchange(x)), x)

    split = jax.shard_map(loop, mesh=mesh, in_specs=rows.spec, out_specs=rows.spec)
    x = jax.ShapeDtypeStruct((4, 64), jnp.float32, sharding=rows)
    found = hlo.traffic(jax.jit(split).lower(x).compile().as_text()).collectives
    group = RING[0] if kind == "collective-permute" else (0, 1, 2, 3)
    assert found == (Collective(kind, 5, ROW, group),)
    assert found[0].sent == 5 * ROW * share


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("={{1,5},{3,7}}", (1, 5)),
        ("=[4,2]<=[8], other=[1]", (0, 1)),
        ("=[4,2]<=[2,2,2]T(2,1,0)", (0, 4)),
        ("=mesh['a'=2,'b'=2,'c'=2] {'a'}", (0, 4)),
        ("=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("=mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("=mesh['a'=8] {'a':(2)2}", (0, 2)),
        ("=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}", (0, 2)),
    ],
)
def test_groups_of_devices_are_read_in_every_form(text, first):
    program = f"""
ENTRY %main (x: f32[64]) -> f32[64] {{
  %x = f32[64]{{0}} parameter(0)
  ROOT %sum = f32[64]{{0}} all-reduce(%x), channel_id=1, replica_groups{text}, to_apply=%add
}}
"""
    assert hlo.traffic(program).collectives == (Collective("all-reduce", 1, ROW, first),)


def test_a_loop_reads_one_layer_of_stacked_weights_a_turn():
    layers, n, d = 6, 32, 64
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (layers, d, d)))

    def network(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    found = hlo.traffic(jax.jit(network).lower(x, w).compile().as_text())
    # A product reads one matrix and its input, and writes its output; the rest copies the matrix
    # out of the stack and applies tanh, at most, and counts turns.
    assert found.matmuls == layers * 4 * (d * d + 2 * n * d)
    assert found.rest <= layers * (4 * (2 * d * d + 2 * n * d) + 64) + 2 * 4 * n * d


@pytest.mark.parametrize("dear", [True, False])
def test_of_a_choice_the_branch_that_moves_most_counts(dear):
    n, d = 32, 64
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, d)))

    def look(x, w):
        return jnp.sin(x @ w) @ w

    def choose(on, x, w):
        return lax.cond(on, *((look, lambda x, w: x) if dear else (lambda x, w: x, look)), x, w)

    on = jax.ShapeDtypeStruct((), bool)
    found = hlo.traffic(jax.jit(choose).lower(on, x, w).compile().as_text())
    assert found.matmuls == 2 * 4 * (d * d + 2 * n * d)
    assert found.rest >= 2 * 4 * n * d  # the sine


TPU_PROGRAM = """
%body (p: (s32[], f32[4,1024], f32[1024])) -> (s32[], f32[4,1024], f32[1024]) {
  %p = (s32[], f32[4,1024]{1,0:T(8,128)}, f32[1024]{0:T(1024)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %stack = f32[4,1024]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %near = f32[1024]{0:T(1024)S(1)} get-tuple-element(%p), index=2
  %new = f32[4,1024]{1,0:T(8,128)} fusion(%stack, %near, %i), kind=kLoop, calls=%store
  ROOT %out = (s32[], f32[4,1024]{1,0:T(8,128)}, f32[1024]{0:T(1024)S(1)}) tuple(%i, %new, %near)
}

%store (a: f32[4,1024], b: f32[1024], i: s32[]) -> f32[4,1024] {
  %a = f32[4,1024]{1,0:T(8,128)} parameter(0)
  %b = f32[1024]{0:T(1024)S(1)} parameter(1)
  %i.1 = s32[] parameter(2)
  %row = f32[1,1024]{1,0:T(8,128)} bitcast(%b)
  ROOT %update = f32[4,1024]{1,0:T(8,128)} dynamic-update-slice(%a, %row, %i.1, %i.1)
}

%condition (p.1: (s32[], f32[4,1024], f32[1024])) -> pred[] {
  %p.1 = (s32[], f32[4,1024]{1,0:T(8,128)}, f32[1024]{0:T(1024)S(1)}) parameter(0)
  %limit = s32[]{:T(128)} constant(28)
  %i.2 = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.2, %limit), direction=LT
}

ENTRY %main (s: (s32[], f32[4,1024], f32[1024])) -> (s32[], f32[4,1024], f32[1024]) {
  %s = (s32[], f32[4,1024]{1,0:T(8,128)}, f32[1024]{0:T(1024)S(1)}) parameter(0)
  ROOT %l = (s32[], f32[4,1024], f32[1024]) while(%s), condition=%condition, body=%body
}
"""


def test_a_tpus_loop_counts_by_its_condition_and_its_own_memory_not_at_all():
    """A row is stored in place (4 kB, and the index), from memory that is not the main one."""
    assert hlo.traffic(TPU_PROGRAM) == hlo.Traffic(0.0, 28.0 * (4096 + 4), ())


def test_an_array_that_comes_near_in_slices_is_read_once():
    near = "s8[2048]{0:T(1024)S(1)}"
    begun = "((s8[4096]{0:T(1024)}), s8[2048]{0:T(1024)S(1)}, s32[]{:S(2)})"
    program = f"""
ENTRY %main (x: s8[4096]) -> s8[2048] {{
  %x = s8[4096]{{0:T(1024)}} parameter(0)
  %begin.1 = {begun} slice-start(%x), slice={{[0:2048]}}
  %begin.2 = {begun} slice-start(%x), slice={{[2048:4096]}}
  %end.1 = {near} slice-done(%begin.1)
  %end.2 = {near} slice-done(%begin.2)
  %again = {near} slice(%x), slice={{[0:2048]}}
  ROOT %sum = s8[2048]{{0:T(1024)}} add(%end.1, %end.2)
}}
"""
    # Ahead, each half; then the first half once more, and the sum, which is written.
    assert hlo.traffic(program) == hlo.Traffic(4096.0, 2048.0 + 2048.0, ())


@pytest.mark.parametrize("element", ["%y", "%call#0"])
def test_a_librarys_workspace_is_not_traffic_in_either_notation_of_a_tuples_elements(element):
    matmul = 'custom-call(%x, %w), custom_call_target="__cublas$lt$matmul"'
    program = f"""HloModule step

ENTRY %main (x: f32[8,128], w: f32[128,16]) -> f32[8,16] {{
  %x = f32[8,128]{{1,0}} parameter(0)
  %w = f32[128,16]{{1,0}} parameter(1)
  %call = (f32[8,16]{{1,0}}, s8[33554432]{{0}}) {matmul}
  %y = f32[8,16]{{1,0}} get-tuple-element(%call), index=0
  ROOT %z = f32[8,16]{{1,0}} negate({element})
}}
"""
    sizes = 4.0 * 8 * 128, 4.0 * 128 * 16, 4.0 * 8 * 16
    assert hlo.traffic(program) == hlo.Traffic(sum(sizes), 2 * sizes[2], ())


def test_a_step_takes_what_cannot_go_on_meanwhile():
    assert Roofline(5.0, 2.0, 1.0, 3.0).step == 6.0
    assert Roofline(5.0, 2.0, 1.0, 3.0).bound == "compute"
    assert Roofline(2.0, 5.0, 1.0, 3.0).step == 6.0
    assert Roofline(2.0, 5.0, 1.0, 3.0).bound == "memory"
    assert Roofline(1.0, 0.5, 1.5, 3.0).bound == "interconnect"
    assert Roofline(1.0, 0.5, 1.5, 2.0).bound == "memory"


class Place:
    """A device of a torus."""

    platform = "tpu"

    def __init__(self, *coords):
        self.coords = coords


def test_an_exchange_takes_the_links_of_the_axes_that_it_lies_along():
    devices = [Place(x, y, 0) for x in range(4) for y in range(4)]
    mesh = type("Mesh", (), {"devices": type("Array", (), {"flat": devices})})
    torus = Target("v6e:4x4", devices, CHIPS["v6e"], 918e12)
    line, square = Collective("all-gather", 1, 2e11, (0, 1, 2, 3)), tuple(range(16))
    assert torus.seconds(line, mesh) == 3 * 2e11 / 2e11
    assert torus.seconds(Collective("all-gather", 1, 1e11, square), mesh) == 15 * 1e11 / 4e11
    # Sixteen in a ring, from one end of it to the other four hops on the average.
    assert torus.seconds(Collective("all-to-all", 1, 16e11, square), mesh) == 15e11 / 4e11
    switch = dataclasses.replace(torus, chip=CHIPS["h200"])
    assert switch.seconds(line, mesh) == 3 * 2e11 / 4.5e11


@pytest.mark.parametrize("name", ["v5p", "v5p:4x4x4x4", "h200x", "a100", "cpu", "tpu:4"])
def test_a_target_that_means_nothing_is_refused_with_those_that_do(name):
    with pytest.raises(ValueError, match=f"unknown devices '{name}'.*v5p:4x4x4.*cpu:8"):
        accelerators.find(name)


@pytest.mark.parametrize(
    ("name", "package"), [("v5p:4x4x4", r"jax\[tpu\]"), ("h200x8", r"jax\[cuda13\]")]
)
def test_a_missing_compiler_is_named_with_its_package(name, package, monkeypatch):
    def missing(*_, **__):
        raise NotImplementedError("topology not implemented")

    monkeypatch.setattr(accelerators.topologies, "get_topology_desc", missing)
    with pytest.raises(ValueError, match=rf"{name[:4]}.*not implemented.*{package}=="):
        accelerators.find(name)


@pytest.mark.thorough
def test_a_plan_adds_up():
    cfg = load("vae", "--optim.name", "adamw", "--mesh.data", "2", "--mesh.fsdp", "4")
    lines = []
    found = plan.plan(cfg, "cpu:8", lines.append)
    mesh = sharding.make_mesh(cfg.mesh)
    state = plan.state_bytes(Trainer(VAEStage.describe(cfg, mesh)).plan.shapes)
    assert state["parameters"] == state["average"]
    # Two moments, and the counts of the optimiser, the clipping and the schedule.
    assert 2 * state["parameters"] < state["optimiser"] < 2 * state["parameters"] + 64
    frames = 5 * 16 * 16 * 3  # one clip in uint8 on each device, and step, updates, rejections
    assert found.total >= sum(state.values()) + frames + 12 + found.temporary
    assert found.total < 1.1 * (sum(state.values()) + frames + 12 + found.temporary) + 4096
    assert found.work.flop <= found.executed < 2 * found.work.flop  # nothing is recomputed here
    assert {len(x.group) for x in found.traffic.collectives} <= {2, 4, 8}
    assert found.fits(accelerators.find("cpu:8"))
    text = "\n".join(lines)
    for part in ("8 x cpu, mesh data 2 x fsdp 4", "optimiser", "TFLOP needed", "all-reduce over 8"):
        assert part in text


@pytest.mark.thorough
def test_a_plan_of_an_adapter_counts_the_network_that_is_frozen(monkeypatch):
    overrides = ["--model.num_layers", "2", "--data.batch_size", "1", "--execution.remat", "full"]
    cfg = config.load("shapes_lora", overrides)
    kernels = 2 * 16 * cfg.model.width**2  # of both attentions and the feed-forward layer
    adapter = 2 * 8 * (8 * 2 + 2 * 5) * cfg.model.width
    frozen = {}
    small = Target("small", jax.devices()[:1], dataclasses.replace(CHIPS["h100"], memory=1e6), 1e12)
    monkeypatch.setattr(plan.accelerators, "find", lambda name: small)
    for form, advice in (("float32", "--adapter.base int8"), ("int8", "moment_dtype 8bit")):
        one = dataclasses.replace(cfg, adapter=dataclasses.replace(cfg.adapter, base=form))
        lines = []
        planned = plan.plan(one, "small", lines.append)
        assert any(line.startswith("  frozen") for line in lines)
        assert advice in lines[-1]
        stage = TransformerStage.describe(one, sharding.make_mesh(cfg.mesh, small.devices))
        state = plan.state_bytes(Trainer(stage).plan.shapes, stage.frozen)
        assert state["parameters"] == state["average"] == 4 * adapter
        assert 8 * adapter < state["optimiser"] < 8 * adapter + 64
        assert planned.total > sum(state.values()) + planned.temporary
        frozen[form] = state["frozen"]
    assert frozen["float32"] - frozen["int8"] > 3 * kernels
    assert frozen["int8"] > kernels


@pytest.mark.thorough
def test_a_plan_of_a_decoders_adapter_counts_the_vae_that_is_frozen(monkeypatch):
    overrides = ["--adapter.rank", "2", "--run.init_from", "x", "--data.batch_size", "1"]
    cfg = config.load(str(ROOT / "configs/shapes_tiny_vae.py"), overrides)
    small = Target("small", jax.devices()[:1], dataclasses.replace(CHIPS["h100"], memory=1e3), 1e12)
    monkeypatch.setattr(plan.accelerators, "find", lambda name: small)
    lines = []
    plan.plan(cfg, "small", lines.append)
    assert "int8" not in lines[-1]  # which is for transformers
    stage = VAEStage.describe(cfg, sharding.make_mesh(cfg.mesh, small.devices))
    state = plan.state_bytes(Trainer(stage).plan.shapes, stage.frozen)
    whole = sum(x.size for x in jax.tree.leaves(keys.vae_boxed(cfg.model)))
    adapter = keys.adapter_boxed(cfg.model, cfg.adapter, "float32")
    assert state["frozen"] == 2 * whole  # in bfloat16
    assert state["parameters"] == 4 * sum(x.size for x in jax.tree.leaves(adapter))


def test_a_plan_knows_the_vae_that_is_there():
    cfg = config.load(str(ROOT / "configs/shapes_transformer.py"), ["--vae", "embedded:shapes"])
    mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    clip = TransformerStage.describe(cfg, mesh).abstract_batch(cfg.data.sizes[0])
    assert clip["video"]["mean"].shape == (32, 4, 6, 6, 64)
    cfg = dataclasses.replace(cfg, vae="runs/none_yet")
    with pytest.raises(ValueError, match=r"no VAE at runs/none_yet.* 128 channels .* 64: train"):
        TransformerStage.describe(cfg, mesh)


@pytest.mark.thorough
def test_a_plan_that_does_not_fit_says_what_to_change(monkeypatch):
    small = dataclasses.replace(CHIPS["v5p"], memory=1e5, torus=False)
    target = Target("small", jax.devices()[:8], small, 1e12)
    monkeypatch.setattr(plan.accelerators, "find", lambda name: target)
    for overrides, advice in [
        (["--mesh.data", "8"], "raise --mesh.fsdp"),
        (["--mesh.data", "1", "--mesh.fsdp", "8"], "set --execution.remat full"),
    ]:
        lines = []
        found = plan.plan(load("vae", *overrides), "small", lines.append)
        assert not found.fits(target)
        assert 0 < found.mfu(target) < 1
        assert any(line.endswith("does not fit") for line in lines)
        assert advice in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [{"fsdp": 64}, {"data": 2, "fsdp": 8, "seq": 4}, {"fsdp": 32, "tensor": 2}], ids=str
)
def test_the_partitioner_gathers_no_array_of_the_2b_step_because_it_knows_no_better(mesh):
    """XLA warns of an "involuntary full rematerialization" where it cannot get from one layout to
    another but by way of the whole array on every device. All layers are one body."""
    command = [sys.executable, "train.py", "configs/ltxv_2b.py", "--plan", "cpu:64"]
    command += ["--model.num-layers", "2"]
    command += [f"--mesh.{axis}={size}" for axis, size in mesh.items()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "64 x cpu" in done.stdout
    assert "TFLOP needed" in done.stdout  # it was compiled
    assert "emateriali" not in done.stderr
