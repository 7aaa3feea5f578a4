import itertools

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # every sharding test runs on a laptop
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def keys():
    """An endless supply of fresh keys."""
    return (jax.random.fold_in(jax.random.key(0), i) for i in itertools.count())


@pytest.fixture
def mesh():
    from ltx_jax import config  # imported late: jaxtyping's hook must see it first
    from ltx_jax.runtime import sharding

    return sharding.make_mesh(config.MeshConfig(data=1, fsdp=2, seq=2, tensor=2))
