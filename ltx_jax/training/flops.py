"""Counts the floating-point operations of a program; peak rates of known devices.

XLA's own estimate counts the body of a loop only once and ignores calls of libraries such as cuDNN.
Here a program is traced, and the operations of its matmuls and convolutions are added up; all other
operations are limited by memory traffic and not counted.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ltx_jax.runtime.platforms import platform

# Dense bfloat16 operations per second of one JAX device. The first name that is contained in
# `device_kind` applies. Sources: NVIDIA's data sheets (half of the value that they list with
# sparsity), cloud.google.com/tpu/docs.
_PEAKS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # "TPU v5p" too
    "TPU v6": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 operations per second of a device of this kind (`jax.Device.device_kind`), or
    None if it is unknown."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), None)


def count_flop(
    function: Callable[..., Any], *arguments: Any, gradient: int | Sequence[int] = ()
) -> float:
    """Counts the operations of all matmuls and convolutions of a program, over all devices.

    Args:
      function: the program. The body of a loop counts once per iteration; of a conditional, only
        the most expensive branch counts.
      arguments: arguments of the function; shapes are enough.
      gradient: positions of arguments. Adds the operations of the gradient with respect to these
        arguments: every matmul once more for each operand that depends on them. Operations that
        rematerialisation repeats do not count, so that the result can be divided by the peak rate
        to get the model FLOP utilisation (MFU).

    Raises:
      ValueError: for matmuls inside a loop whose length is not fixed when it is traced.
    """
    positions = {gradient} if isinstance(gradient, int) else set(gradient)
    flows = [i in positions for i, tree in enumerate(arguments) for _ in jax.tree.leaves(tree)]
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, flows)[0]


def count_traced(jaxpr: Any) -> float:
    """Counts the operations of a traced program, including those that rematerialisation repeats."""
    return _count(jaxpr, [False] * len(jaxpr.invars))[0]


class _Outputs(NamedTuple):
    """Which outputs of a program are used at all, and which of them receive a gradient."""

    used: list[bool]
    wanted: list[bool]


def _count(
    jaxpr: Any, flows: Sequence[bool], ends: _Outputs | None = None
) -> tuple[float, list[bool]]:
    """Counts a program's operations; also returns which outputs depend on the inputs in `flows`.

    Equations that no used output depends on are not counted, as the compiler removes them.
    """
    every = [True] * len(jaxpr.outvars)
    used, wanted = ends or _Outputs(every, every)
    needed, reached = (
        {x for x, yes in zip(jaxpr.outvars, marked, strict=True) if yes and not _is_literal(x)}
        for marked in (used, wanted)
    )
    for equation in reversed(jaxpr.eqns):
        inputs = {x for x in equation.invars if not _is_literal(x)}
        if needed.intersection(equation.outvars) or equation.effects:
            needed |= inputs
        if reached.intersection(equation.outvars) and equation.primitive.name != "stop_gradient":
            reached |= inputs

    moving = {x for x, yes in zip(jaxpr.invars, flows, strict=True) if yes}
    total = 0.0
    for equation in jaxpr.eqns:
        ends = _Outputs(*([x in marked for x in equation.outvars] for marked in (needed, reached)))
        if not any(ends.used) and not equation.effects:
            continue
        flows = [any(ends.wanted) and not _is_literal(x) and x in moving for x in equation.invars]
        flop, outputs = _count_equation(equation, flows, ends)
        total += flop
        for variable, depends in zip(equation.outvars, outputs, strict=True):
            if depends and jnp.issubdtype(variable.aval.dtype, jnp.inexact):
                moving.add(variable)
    return total, [not _is_literal(x) and x in moving for x in jaxpr.outvars]


def _is_literal(atom: Any) -> bool:
    return hasattr(atom, "val")


def _count_equation(equation: Any, flows: list[bool], ends: _Outputs) -> tuple[float, list[bool]]:
    name, parameters = equation.primitive.name, equation.params
    through = [any(flows)] * len(equation.outvars)
    if name == "stop_gradient":
        return 0.0, [False]
    if name in _COUNTERS:
        return _COUNTERS[name](equation) * (1 + sum(flows)), through
    if name.startswith("dot_product_attention"):
        return _cudnn_attention(equation, flows), through
    if name == "scan":
        return _count_scan(equation, flows)
    if name == "while":
        if _count_inside(parameters):
            raise ValueError(
                "cannot count matmuls in a loop of unknown length: count one iteration of it"
            )
        return 0.0, through
    if name == "cond":  # the first operand selects the branch
        counts = [_count(branch, flows[1:], ends) for branch in _branches(parameters)]
        outputs = [any(flags) for flags in zip(*(out for _, out in counts), strict=True)]
        return max(flop for flop, _ in counts), outputs
    if name == "pallas_call":  # its body runs once per point of the grid
        once = _count_inside(parameters) * math.prod(parameters["grid_mapping"].grid)
        return once * (3 if any(flows) else 1), through
    inner = [part for part in _jaxprs(parameters) if len(part.invars) == len(flows)]
    if not inner:
        return 0.0, through
    flop, outputs = _count(inner[0], flows, ends)
    if name == "shard_map":  # shapes are those of one device; replicated work counts once
        specs = [tuple(spec) for key in ("in_specs", "out_specs") for spec in parameters[key]]
        flop *= math.prod(parameters["mesh"].shape[axis] for axis in set(jax.tree.leaves(specs)))
    return flop, outputs


def _branches(parameters: Any) -> list[Any]:
    """The branches of a conditional; of a `lax.platform_dependent`, only the current platform's."""
    branches = [branch.jaxpr for branch in parameters["branches"]]
    ours = {"gpu": ("gpu", "cuda")}.get(platform(), (platform(),))
    for names, branch in zip(parameters.get("branches_platforms") or (), branches, strict=False):
        if names is None or set(names).intersection(ours):
            return [branch]
    return branches


def _count_scan(equation: Any, flows: list[bool]) -> tuple[float, list[bool]]:
    body = equation.params["jaxpr"].jaxpr

    def whole(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        """How many variables are not stacked over iterations; they come first."""
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner, strict=True))

    # The inputs of a scan are constants, carry, stacked inputs; its outputs carry, stacked outputs.
    carried, last = whole(equation.outvars, body.outvars), whole(equation.invars, body.invars)
    first = last - carried
    while True:  # the carry may depend on more of the inputs after a further iteration
        flop, outputs = _count(body, flows)
        merged = [a or b for a, b in zip(flows[first:last], outputs[:carried], strict=True)]
        if merged == flows[first:last]:
            return flop * equation.params["length"], outputs
        flows = [*flows[:first], *merged, *flows[last:]]


def _count_inside(parameters: Any) -> float:
    return sum(_count(part, [False] * len(part.invars))[0] for part in _jaxprs(parameters))


def _jaxprs(parameters: Any) -> list[Any]:
    parts = (getattr(value, "jaxpr", value) for value in parameters.values())
    return [part for part in parts if hasattr(part, "eqns")]


def _dot(equation: Any) -> float:
    left = equation.invars[0].aval.shape
    contracted = equation.params["dimension_numbers"][0][0]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # The gradient of a strided convolution puts zeros between the inputs; these are not counted.
    spread = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features / spread


def _cudnn_attention(equation: Any, flows: list[bool]) -> float:
    """Counts JAX's cuDNN attention primitives: queries (b, n, k, e) and keys (b, m, k, e)."""
    queries, keys = (x.aval.shape for x in equation.invars[:2])
    one = 2.0 * math.prod(queries) * keys[1]
    if "bwd" in equation.primitive.name:
        return 5 * one  # recomputes the scores, then two gradients of each of the two matmuls
    q, k, v = flows[:3]
    return one * ((1 + q + k) + (1 + (q or k) + v))


_COUNTERS: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
