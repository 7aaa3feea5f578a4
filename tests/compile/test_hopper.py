"""What the sampler and the decoder become on an H200: kernels and bytes, counted, not timed."""

import collections
import math
import re

import jax
import pytest
from released import (
    HIDDEN,
    TOKENS,
    WIDTH,
    decoder,
    decoder_params,
    derived,
    fast_step,
    transformer,
    vae,
)

from ltx_jax.models.transformer_fast_parameters import LINEARS

pytestmark = pytest.mark.compile
GB = 1e9


def size(tree):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def large(program, kind, *opcodes):
    """Instructions of some opcodes that write `kind` arrays of tokens by the width or more."""

    def elements(shape):
        sizes = re.findall(rf"\b{kind}\w*\[([\d,]+)\]", shape)
        return max((math.prod(map(int, x.split(","))) for x in sizes), default=0)

    return [
        x
        for x in program.executed
        if elements(x.shape) >= TOKENS * WIDTH and (not opcodes or x.opcode in opcodes)
    ]


def epilogues(program):
    calls = [x for x in program.executed if "__cublas$lt$matmul" in x.text]
    return collections.Counter(re.findall(r'"epilogue":"(\w+)"', " ".join(x.text for x in calls)))


def test_every_attention_is_one_call_of_cudnn():
    for layers in (1, 2):
        assert len(fast_step(layers).calls("__cudnn$fmhaSoftmax")) == 2 * layers


def test_products_add_their_bias_and_the_gelu_within_cublaslt():
    one, two = epilogues(fast_step(1)), epilogues(fast_step(2))
    assert two - one == {"BIAS": 5, "BIAS_GELU": 1}
    assert not [x for x in fast_step(2).executed if x.opcode in ("dot", "convolution")]


def test_no_layer_writes_its_tokens_in_float32():
    """The one that does is the output's norm, once a step, for the last product is in float32."""
    assert len(large(fast_step(1), "f32")) == len(large(fast_step(2), "f32")) == 1


def test_no_weight_is_transposed_or_joined_in_a_step():
    """Nothing but products reads a matrix, and so nothing writes one."""
    matrix = re.compile(rf"(bf16|f8e4m3fn)\[({WIDTH},\d+|{HIDDEN},{WIDTH})\]")
    one, two = (
        sum(bool(matrix.search(x.shape)) for x in fast_step(layers).executed) for layers in (1, 2)
    )
    assert one == two
    assert not large(fast_step(2), "bf16", "copy", "transpose", "concatenate")


def test_a_layer_moves_little_beside_its_products():
    """0.53 GB were counted for the best form, 0.98 for one that leaves all to XLA."""
    one, two = fast_step(1).traffic, fast_step(2).traffic
    assert 0.4 * GB < two.rest - one.rest < 0.6 * GB


def test_a_layer_of_conditioned_sampling_moves_as_little():
    """A modulation of each token's own would be 150 MB to read in every layer."""
    one, two = (fast_step(layers, condition=True) for layers in (1, 2))
    assert two.traffic.rest - one.traffic.rest < 0.6 * GB
    assert len(large(one, "f32")) == len(large(two, "f32")) == 1
    assert two.temporary < fast_step(2).temporary + 0.01 * GB


def test_sampling_takes_ten_gigabytes_beside_the_text_encoder():
    """Hence 20 with T5-XXL (9.6 GB in bfloat16) still there."""
    weights = size(derived(transformer())) + size(decoder_params(vae()))
    assert 6.0 * GB < weights < 6.5 * GB
    # Layers run one after the other, in the memory of the first.
    assert fast_step(2).temporary - fast_step(1).temporary < 0.03 * GB
    assert weights + max(fast_step(2).temporary, decoder().temporary) < 10.4 * GB


def test_the_decoder_convolves_with_channels_last():
    """The layouts of the results of cuDNN's calls: the channels vary fastest."""
    calls = [x for x in decoder().executed if "__cudnn$conv" in x.text]
    assert len(calls) >= 45
    labels = collections.Counter(re.search(r"dim_labels=(\S+?),? ", x.text)[1] for x in calls)
    assert all(re.fullmatch(r"b\d+f_\S+->b\d+f", label) for label in labels), labels


def test_the_decoder_needs_little_memory():
    assert 2 * GB < decoder().temporary <= 3.5 * GB


def test_eight_bit_linears_are_eight_bit_products():
    layers = 2
    program = fast_step(layers, "float8")
    assert len(program.calls("__cublas$lt$matmul$f8")) == len(LINEARS) * layers
    eight = [x.text for x in program.calls("__cublas$lt$matmul$f8")]
    found = collections.Counter(re.findall(r'"epilogue":"(\w+)"', " ".join(eight)))
    assert found == {"BIAS": 5 * layers, "BIAS_GELU": layers}


def test_whole_byte_weights_are_read_as_such_and_widened_one_at_a_time():
    """Each of the products' matrices once, and all in the memory of a few: 67 MB for the largest
    two, beside the activations."""
    layers = 2
    program = fast_step(layers, "int8")
    whole = sum(
        x.size for x in jax.tree.leaves(derived(transformer(layers), "int8")) if x.dtype == "int8"
    )
    assert whole == layers * (3 + 1 + 1 + 1 + 4 + 4) * WIDTH**2
    assert epilogues(program) == epilogues(fast_step(layers))
    assert program.temporary < fast_step(layers).temporary + 0.15 * GB


def test_a_step_that_may_be_reused_chooses_on_the_device():
    program = fast_step(1, reuse=True)
    assert " conditional(" in program.text
    # Both the input seen and the update kept, bfloat16, and what the choice itself holds.
    assert program.temporary < fast_step(1).temporary + 0.15 * GB
