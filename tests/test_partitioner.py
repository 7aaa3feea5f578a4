"""What XLA's partitioner does wrong, for which the networks split their convolutions themselves.

Each test fails with a version of jax that mends what it shows: then say so here, and see whether
`models/convolution.py` still needs its own way. Shardy or not makes no difference.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


@pytest.mark.xfail(strict=True, reason="wrong in jax 0.10.2, 0.11.2 and 0.12.0.1")
def test_input_channels_over_some_devices_are_summed_over_those_alone():
    """Rows over four devices, the kernel's input channels over two: XLA gathers the rows, splits
    the channels, and sums over all eight devices: the result is four times too large. The gradient
    of the inputs is such a convolution wherever a kernel is split by its outputs."""
    mesh = jax.make_mesh((2, 4), ("fsdp", "seq"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, channels = (NamedSharding(mesh, P(None, name)) for name in ("seq", "fsdp"))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    x, kernel = jnp.ones((1, 16, 8)), jnp.ones((3, 8, 16))
    split = jax.jit(convolve, in_shardings=(rows, channels), out_shardings=rows)(x, kernel)
    assert float(split[0, 8, 0]) == 3 * 8
