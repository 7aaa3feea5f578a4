"""What the sampler becomes on four TPU chips: its kernels, and what moves between the chips."""

import collections
import re

import pytest
from released import sharded_step

pytestmark = pytest.mark.compile
LAYERS = 2
V5P, V6E = "v5p:2x2x1", "v6e:2x2"


def exchanges(program):
    """How often each kind of exchange runs."""
    found = collections.Counter()
    for collective in program.traffic.collectives:
        found[collective.kind] += collective.times
    return found


@pytest.mark.parametrize("target", [V5P, V6E])
def test_tokens_over_four_chips_move_within_attention_alone(target):
    """Queries, keys and values to the chips of their heads, and what they see back again: four in
    a layer. Weights and captions are whole everywhere."""
    program = sharded_step(target, LAYERS, seq=4)
    assert exchanges(program) == {"all-to-all": 4 * LAYERS}
    kernels = program.calls("tpu_custom_call")
    assert len(kernels) == 2 * LAYERS
    assert all(x.name.startswith("splash_mha") for x in kernels)
    # Eight heads see all tokens of each other, and all heads the caption from their own tokens.
    results = {found for x in kernels for found in re.findall(r"bf16\[\d+,\d+,\d+\]", x.shape)}
    assert results == {"bf16[8,6144,64]", "bf16[32,1536,64]"}


def test_samples_over_four_chips_exchange_nothing():
    assert not exchanges(sharded_step(V6E, LAYERS, batch=4, data=4))


def test_heads_over_four_chips_are_summed_and_never_gathered():
    """After each of the three products that mix heads, and for the norms over all of them."""
    program = sharded_step(V6E, LAYERS, tensor=4)
    found = exchanges(program)
    assert found.keys() == {"all-reduce"}
    assert 3 * LAYERS <= found["all-reduce"] <= 7 * LAYERS + 1
    assert len(program.calls("tpu_custom_call")) == 2 * LAYERS
