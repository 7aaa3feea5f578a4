"""How programs that run once are compiled in tests: quickly, without most optimisations."""

import functools

import jax

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# For whole programs: a function that others jit takes no options of its own.
compiled = functools.partial(jax.jit, compiler_options=QUICK)
