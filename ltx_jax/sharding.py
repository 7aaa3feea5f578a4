"""The device mesh, and the one table that lays logical axes onto it.

Networks name logical axes ("token", "mlp") and nothing else. A parallelism strategy is a mesh shape
(`MeshConfig`), a layout decision is a row of `RULES`; neither is ever an edit to a network.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn
from flax.linen.spmd import LogicallyPartitioned, RulesFallback, with_logical_constraint
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ltx_jax.config import MeshConfig

RULES: dict[str, str | tuple[str, ...] | None] = {
    # Activations.
    "batch": ("data", "fsdp"),
    "token": "seq",
    "frame": None,
    "row": "seq",
    "act_embed": None,
    "act_mlp": "tensor",
    "act_heads": "tensor",
    # Parameters. FSDP always splits the model-width dimension.
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "adaln": None,
    "conv_in": None,
    "conv_out": "fsdp",
    "layers": None,  # what nn.scan stacks
}


def make_mesh(cfg: MeshConfig = MeshConfig(), devices: list[Any] | None = None) -> Mesh:
    """Builds the mesh `data x fsdp x seq x tensor`, the -1 axis taking the devices left over.

    Raises:
      ValueError: if the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(cfg)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    fits = fixed > 0 and len(devices) % fixed == 0 and (free or fixed == len(devices))
    if len(free) > 1 or not fits:
        raise ValueError(f"a mesh of {sizes} does not fit {len(devices)} devices")
    for name in free:
        sizes[name] = len(devices) // fixed
    # jax.make_mesh defaults to Explicit axes, with which Linen's constraints do not work.
    auto = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=devices)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Makes the mesh and `RULES` current, so that `constrain` acts."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def spec(axes: tuple[str | None, ...]) -> P:
    """Resolves logical axes to mesh axes.

    Raises:
      ValueError: for a name without a row in `RULES`, or a mesh axis used twice.
    """
    unknown = [name for name in axes if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"{unknown} are no logical axes; known: {sorted(RULES)}")
    resolved = tuple(None if name is None else RULES[name] for name in axes)
    used = [
        a for entry in resolved if entry for a in (entry if isinstance(entry, tuple) else (entry,))
    ]
    if len(used) != len(set(used)):
        raise ValueError(f"{axes} uses a mesh axis twice: {resolved}")
    return P(*resolved)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation; does nothing outside `use_mesh`.

    A dimension that its mesh axes do not divide is left whole. So are rows where a device would get
    a single one: of two such devices, XLA (jax 0.10) makes wrong convolutions.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def fits(size: int, name: str | None) -> bool:
        entry = RULES.get(name or "") or ()  # an unknown name is refused below
        names = (entry,) if isinstance(entry, str) else entry
        devices = math.prod(mesh.shape[axis] for axis in names)
        return size % devices == 0 and not (name == "row" and size == devices > 1)

    kept = tuple(name if fits(x.shape[i], name) else None for i, name in enumerate(axes))
    return with_logical_constraint(x, kept, fallback=RulesFallback.RAISE_ERROR)


def _is_boxed(x: Any) -> bool:
    return isinstance(x, LogicallyPartitioned)


def unbox(boxed: Any) -> Any:
    """Drops the axis names. Adds no constraint, unlike `nn.unbox`, so it works on shapes too."""
    return jax.tree.map(lambda x: x.value if _is_boxed(x) else x, boxed, is_leaf=_is_boxed)


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf, from the axis names that its initialiser attached.

    A dimension that its mesh axes do not divide is replicated (a 3-channel kernel over 8 devices).
    """

    def leaf(x: Any) -> NamedSharding:
        if not _is_boxed(x):
            return NamedSharding(mesh, P())
        entries = []
        for size, entry in zip(x.value.shape, spec(x.names), strict=True):
            names = entry if isinstance(entry, tuple) else (entry,) if entry else ()
            divides = size % math.prod(mesh.shape[name] for name in names) == 0
            entries.append(entry if divides else None)
        return NamedSharding(mesh, P(*entries))

    return jax.tree.map(leaf, boxed, is_leaf=_is_boxed)


def init_sharded(init: Callable[..., Any], mesh: Mesh, *args: Any) -> tuple[Any, Any]:
    """Runs `init(*args)`, every array born on its shard; returns the plain tree and its layout."""
    layout = shardings(jax.eval_shape(init, *args), mesh)
    # LLVM spends seconds on every draw's bit generator at its highest level, and gains nothing.
    quick = {"xla_backend_optimization_level": 1}
    with use_mesh(mesh):
        born = jax.jit(lambda *a: unbox(init(*a)), out_shardings=layout, compiler_options=quick)(
            *args
        )
    return born, layout
