"""The device mesh, and the one table that maps logical axes to it.

Networks name only logical axes ("token", "mlp"). To change the parallelism strategy, change the
mesh shape (`MeshConfig`); to change the layout of an axis, change its row in `RULES`. Neither needs
an edit to a network.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.linen.spmd import LogicallyPartitioned, RulesFallback, with_logical_constraint
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
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
    "layers": None,  # the axis along which nn.scan stacks the layers
}


def make_mesh(cfg: MeshConfig = MeshConfig(), devices: list[Any] | None = None) -> Mesh:
    """Builds the mesh `data x fsdp x seq x tensor`, whose -1 axis takes the remaining devices.

    Raises:
      ValueError: if the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(cfg)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    fits = fixed > 0 and len(devices) % fixed == 0 and (free or fixed == len(devices))
    if len(free) > 1:
        raise ValueError(
            f"only one axis of a mesh can take the devices left over, and {' and '.join(free)} are "
            f"-1: give the others a number, such as --mesh.{free[0]} 1"
        )
    if not fits:
        raise ValueError(
            f"a mesh of {sizes} does not fit {len(devices)} devices: the product of its axes must "
            "be their number, or divide it if one axis is -1"
        )
    for name in free:
        sizes[name] = len(devices) // fixed
    # jax.make_mesh cannot map a mesh axis to part of an axis of a TPU's torus, such as 8 devices of
    # 4x4x4.
    grid = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    # Linen's constraints do not work with Explicit axes.
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Makes the mesh and `RULES` current, so that `constrain` acts."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def spec(axes: tuple[str | None, ...]) -> P:
    """Resolves logical axes to mesh axes.

    Raises:
      ValueError: if a name is not in `RULES`, or a mesh axis is used twice.
    """
    unknown = [name for name in axes if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"unknown logical axes {unknown}; known: {sorted(RULES)}")
    resolved = tuple(None if name is None else RULES[name] for name in axes)
    used = [
        a for entry in resolved if entry for a in (entry if isinstance(entry, tuple) else (entry,))
    ]
    if len(used) != len(set(used)):
        raise ValueError(f"{axes} uses a mesh axis twice: {resolved}")
    return P(*resolved)


def divisible_axes(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh | AbstractMesh
) -> tuple[str | None, ...]:
    """Replaces the axes of dimensions that cannot be split evenly by None: they are replicated.

    Rows are also replicated if each device would get a single one: reflection padding needs two.
    """

    def fits(size: int, name: str | None) -> bool:
        devices = _devices(name, mesh)
        return size % devices == 0 and not (name == "row" and size == devices > 1)

    pairs = zip(shape, axes, strict=True)
    return tuple(name if fits(size, name) else None for size, name in pairs)


def _devices(name: str | None, mesh: Mesh | AbstractMesh) -> int:
    """Number of devices that a logical axis is split over; 1 for unknown names (see `spec`)."""
    entry = RULES.get(name or "") or ()
    return math.prod(mesh.shape[axis] for axis in ((entry,) if isinstance(entry, str) else entry))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes the sharding of an activation, where its axes divide; no effect outside `use_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    split = divisible_axes(x.shape, axes, mesh)
    return with_logical_constraint(x, split, fallback=RulesFallback.RAISE_ERROR)


def token_padding(count: int) -> int:
    """Number of tokens to add so that the `seq` axis divides them evenly; 0 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 0 if mesh.empty else -count % _devices("token", mesh)


def check_heads(heads: int, mesh: Mesh | AbstractMesh) -> None:
    """Checks that attention heads can be split evenly over `seq` and `tensor`.

    Sequence parallelism splits tokens over `seq` everywhere but inside attention, where it splits
    heads instead.

    Raises:
      ValueError: if they cannot.
    """
    seq, tensor = mesh.shape["seq"], mesh.shape["tensor"]
    if heads % (seq * tensor):
        raise ValueError(
            f"{heads} attention heads cannot be split over the {seq * tensor} devices of the mesh "
            f"axes seq ({seq}) and tensor ({tensor}): take --mesh.seq and --mesh.tensor whose "
            f"product divides {heads}"
        )


def is_boxed(x: Any) -> bool:
    """Whether a leaf from a network's `init` is boxed with the names of its axes."""
    return isinstance(x, LogicallyPartitioned)


def unbox(boxed: Any) -> Any:
    """Drops the axis names. Adds no constraint, unlike `nn.unbox`, so it works on shapes too."""
    return jax.tree.map(lambda x: x.value if is_boxed(x) else x, boxed, is_leaf=is_boxed)


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf, from the axis names that its initialiser attached.

    A dimension that its mesh axes do not divide is replicated (3 channels over 8 devices). A
    convolution kernel whose output dimension is replicated for that reason is split along its
    inputs instead.
    """

    def leaf(x: Any) -> NamedSharding:
        if not is_boxed(x):
            return NamedSharding(mesh, P())
        shape, names = x.value.shape, x.names
        if "conv_out" in names and "conv_out" not in divisible_axes(shape, names, mesh):
            names = tuple("conv_out" if name == "conv_in" else None for name in names)
        return NamedSharding(mesh, spec(divisible_axes(shape, names, mesh)))

    return jax.tree.map(leaf, boxed, is_leaf=is_boxed)


def described(boxed: Any, mesh: Mesh) -> Any:
    """The plain tree as ShapeDtypeStruct with the sharding of every leaf (`shardings`)."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        unbox(boxed),
        shardings(boxed, mesh),
    )


def init_sharded(init: Callable[..., Any], mesh: Mesh, *args: Any) -> tuple[Any, Any]:
    """Runs `init(*args)` with sharded results; returns the plain tree and its shardings."""
    layout = shardings(jax.eval_shape(init, *args), mesh)
    # At the highest level, LLVM optimises the random bit generator of every draw for seconds, with
    # no gain.
    quick = {"xla_backend_optimization_level": 1}
    with use_mesh(mesh):
        initialise = jax.jit(
            lambda *a: unbox(init(*a)), out_shardings=layout, compiler_options=quick
        )
        return initialise(*args), layout


def on_host(x: jax.Array) -> np.ndarray:
    """The whole array in every process. Every process must call it: it may run a collective."""
    if not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
