import gc
import itertools
import time

import jax
import jaxtyping
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # every sharding test runs on a laptop
jax.config.update("jax_numpy_rank_promotion", "raise")
# Imports make a million objects, and nearly all of them stay. Looking for garbage among them would
# take seconds, while the tests are collected and after.
gc.disable()


# Seconds of CPU time from which on a test without the mark `thorough` is named: well over the one
# second of the rule, since machines differ and the first test of a process imports more.
LONG = 3.0


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    begin = time.process_time()
    try:
        return (yield)
    finally:
        item.user_properties.append(("seconds", time.process_time() - begin))


def pytest_terminal_summary(terminalreporter, config):
    """Names the tests of `make test-fast` that are no quick ones."""
    if "not thorough" not in config.option.markexpr:
        return
    for report in terminalreporter.getreports("passed"):
        seconds = dict(report.user_properties).get("seconds", 0.0)
        if report.when == "call" and seconds > LONG:
            terminalreporter.write_line(
                f"{report.nodeid} took {seconds:.1f} s of CPU time: mark it thorough", yellow=True
            )


@pytest.fixture
def no_type_checks():
    """Leaves types unchecked in a test that reads thousands of small tensors: checking the
    arguments of every call would take twice as long as all else."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def keys():
    """An endless supply of fresh keys."""
    return (jax.random.fold_in(jax.random.key(0), i) for i in itertools.count())


@pytest.fixture
def mesh():
    from ltx_jax import config  # imported late: jaxtyping's hook must see it first
    from ltx_jax.runtime import sharding

    return sharding.make_mesh(config.MeshConfig(data=1, fsdp=2, seq=2, tensor=2))
