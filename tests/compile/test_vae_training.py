"""What VAE training becomes on an H200: convolutions, matmuls and memory traffic, counted."""

import dataclasses
import math
import re
import time

import jax
import jax.numpy as jnp
import pytest
from released import Program, laid_out, mesh_of

from ltx_jax.config import MeshConfig, load
from ltx_jax.models import convolution
from ltx_jax.models.vae_blocks import ResBlock, remat
from ltx_jax.runtime import sharding
from ltx_jax.training.stage import stage_class
from ltx_jax.training.step import Trainer

pytestmark = pytest.mark.compile
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Timed(Program):
    """A compiled program, and the CPU time that compiling it took, in seconds."""

    seconds: float

    def calls_of(self, library):
        return [x for x in self.executed if f'custom_call_target="{library}' in x.text]

    def transposed(self):
        """Bytes of the bfloat16 arrays that transpositions and copies write."""
        named = [x for x in self.executed if re.search("transpose|copy", x.name)]
        arrays = [size for x in named for size in re.findall(r"\bbf16\[([\d,]+)\]", x.shape)]
        return sum(2 * math.prod(map(int, size.split(","))) for size in arrays)


def compiled(lowered):
    start = time.process_time()
    program = lowered.compile()
    return Timed(program, time.process_time() - start)


@pytest.fixture(scope="module")
def small_step():
    """The step of the VAE of the model that ships, with its discriminator, for 4 clips."""
    mesh, cfg = mesh_of("h200"), load("shapes_vae")
    bucket = cfg.data.buckets[0]
    data = dataclasses.replace(cfg.data, buckets=(bucket,))
    cfg = dataclasses.replace(cfg, data=data, mesh=MeshConfig(data=1))
    stage = stage_class(cfg).describe(cfg, mesh)
    trainer = Trainer(stage)
    with sharding.use_mesh(mesh):
        return compiled(trainer.trace(stage.abstract_batch(bucket)).lower())


@pytest.fixture(scope="module")
def large_block():
    """A residual block of the paper's VAE with its gradient: 512 channels of 2 clips of 17 x 256 x
    256, which is one of eight micro-batches on one of eight GPUs."""
    mesh, cfg = mesh_of("h200"), load("ltx_vae")
    block = remat(ResBlock, cfg.execution)(cfg.model, cfg.execution, 512, causal=True)
    x = jax.ShapeDtypeStruct((2, 9, 32, 32, 512), jnp.bfloat16)

    def loss(params, x):
        return jnp.sum(jnp.square(block.apply(params, x).astype(jnp.float32)))

    params = sharding.unbox(jax.eval_shape(block.init, jax.random.key(0), x))
    with sharding.use_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1)), compiler_options=convolution.compiler_options())
        return compiled(step.lower(*laid_out((params, x), mesh)))


def test_the_small_vae_is_trained_by_matmuls_of_cublas_alone(small_step, record_testsuite_property):
    """XLA would build and time every algorithm of cuDNN for each distinct convolution, and compile
    dozens of its own kernels for each distinct matmul."""
    record_testsuite_property("seconds to compile the small step", small_step.seconds)
    assert not small_step.calls_of("__cudnn")
    assert not [x for x in small_step.executed if x.opcode in ("dot", "convolution")]
    assert "__triton_gemm" not in small_step.text
    assert len(small_step.calls_of("__cublas")) > 500


def test_only_the_optimizer_multiplies_in_float32(small_step):
    calls = small_step.calls_of("__cublas")
    single = [x for x in calls if "bf16" not in "".join((x.shape, *x.operands))]
    assert 400 < len(single) < len(calls)
    assert all("eval_jaxpr" in x.text for x in single)  # how XLA names what optax.muon computes


def test_distinct_matmuls_are_few(small_step):
    """Each is tuned once."""
    distinct = {(x.shape, x.operands) for x in small_step.calls_of("__cublas")}
    assert len(distinct) <= 130


def test_cells_are_all_that_is_transposed(small_step):
    """Space-to-depth, depth-to-space and patches; windows and layouts need no transposition."""
    assert small_step.transposed() < 0.1 * GB


def test_large_convolutions_call_cudnn_in_bfloat16_with_channels_last(
    large_block, record_testsuite_property
):
    """Each of both once more in the backward pass, and the gradients of input and kernel."""
    record_testsuite_property("seconds to compile a large block", large_block.seconds)
    calls = large_block.calls_of("__cudnn")
    kinds = sorted(re.search(r"__cudnn\$conv(\w+)", x.text)[1] for x in calls)
    assert kinds[:4] == ["BackwardFilter"] * 2 + ["BackwardInput"] * 2
    assert len(kinds) == 7
    assert all("Forward" in kind for kind in kinds[4:])
    for call in calls:
        assert not re.search(r"\bf32\[", call.shape + "".join(call.operands))
        assert re.search(r"dim_labels=b012f_o012i->b012f", call.text)
        assert not re.search("feature_group_count|rhs_dilate", call.text)


def test_of_large_layers_kernels_alone_are_transposed(large_block):
    """Both of them in each direction, when they are converted from float32."""
    assert not [x for x in large_block.executed if x.opcode in ("transpose", "copy")]
    assert large_block.transposed() == 4 * 27 * 512**2 * 2
