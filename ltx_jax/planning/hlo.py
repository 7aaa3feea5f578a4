"""Reads a compiled program: what it moves through memory, and between devices.

Loops count as often as they run, of a choice the branch that moves the most. The text is that of
XLA's optimised HLO, whatever the platform.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "f8": 8, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|(?:branch|true|false)_computations?)=(\{[^}]*\}|%?[\w.\-]+)"
)
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota")
_PRODUCTS = ("dot", "convolution")
_PREFETCHES = ("copy-start", "copy-done", "slice-start", "slice-done")
_LIBRARIES = ("__cublas", "__cudnn", "tpu_custom_call", "__onednn")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, in all the times that it runs.

    Attributes:
      kind: one of `COLLECTIVES`.
      times: how often it runs.
      held: bytes on one device before it.
      group: positions in the mesh of the devices of one group.
    """

    kind: str
    times: int
    held: float
    group: tuple[int, ...]

    @property
    def sent(self) -> float:
        """Bytes that a device sends, in all runs, when each goes around a ring of the group."""
        n = len(self.group)
        shares = {
            "all-gather": n - 1,
            "all-reduce": 2 * (n - 1) / n,
            "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "collective-permute": 1,
        }
        return self.held * shares[self.kind] * self.times


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a program moves on each device.

    Attributes:
      products: bytes between memory and instructions that hold products, and those that are
        fetched ahead, beside any instruction.
      rest: the same of all other instructions.
      collectives: what moves between devices.
    """

    products: float
    rest: float
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that runs by itself; what is fused into another does not.

    Attributes:
      name: its own, which of a custom call is often that of the kernel.
      times: how often it runs.
      opcode: such as "fusion" or "custom-call".
      shape: of its result, or of the tuple of its results.
      text: its operands and all that follows them.
    """

    name: str
    times: int
    opcode: str
    shape: str
    text: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str  # all that follows the opcode
    root: bool

    @property
    def called(self) -> list[str]:
        return re.findall(r"[\w.\-]+", " ".join(_CALLED.findall(self.text)))


def traffic(text: str) -> Traffic:
    """Adds up the traffic of one run of a program."""
    return _Program(text).traffic()


def executed(text: str) -> list[Executed]:
    """All instructions that run by themselves in one run of a program."""
    program = _Program(text)
    return [
        Executed(x.name, times, x.opcode, x.shape, x.text)
        for times, x, _ in program.run(program.entry, 1)
    ]


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if match := _INSTRUCTION.match(line):
                root, name, shape, opcode, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", _within_parentheses(rest)))
                current[name] = _Instruction(name, shape, opcode, operands, rest, bool(root))
            elif match := _HEADER.match(line):
                current = self.computations[match[2]] = {}
                if match[1]:
                    self.entry = match[2]

    def traffic(self) -> Traffic:
        products = rest = 0.0
        collectives = []
        for times, instruction, computation in self.run(self.entry, 1):
            moved = times * self._bytes(instruction, computation)
            if self._holds_products(instruction) or instruction.opcode in _PREFETCHES:
                products += moved
            else:
                rest += moved
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES and len(group := _first_group(instruction.text)) > 1:
                operands = [computation[name].shape for name in instruction.operands]
                held = sum((_bytes(shape, everywhere=True) for shape in operands), start=0.0)
                collectives.append(Collective(kind, times, held, group))
        return Traffic(products, rest, tuple(collectives))

    def run(
        self, name: str, times: int
    ) -> Iterator[tuple[int, _Instruction, dict[str, _Instruction]]]:
        """Every instruction that runs by itself, and how often."""
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.opcode == "while":
                for body in instruction.called:
                    yield from self.run(body, times * self._trips(instruction))
            elif instruction.opcode == "conditional":
                branches = [list(self.run(called, times)) for called in instruction.called]
                yield from max(branches, key=self._moved)
            elif instruction.opcode in ("call", "async-start"):
                for called in instruction.called:
                    yield from self.run(called, times)
            elif instruction.opcode not in _FREE:
                yield times, instruction, computation

    def _moved(self, found: list[tuple[int, _Instruction, dict[str, _Instruction]]]) -> float:
        moved = (times * self._bytes(x, computation) for times, x, computation in found)
        return sum(moved, start=0.0)

    def _trips(self, loop: _Instruction) -> int:
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        # A TPU's program does not say; its condition compares the counter with a constant.
        condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
        limits = [
            int(constant[1])
            for instruction in self.computations[condition[1] if condition else ""].values()
            if instruction.opcode == "constant"
            and (constant := re.match(r"(\d+)\)", instruction.text))
        ]
        return max(limits, default=1)

    def _holds_products(self, instruction: _Instruction) -> bool:
        if instruction.opcode in _PRODUCTS:
            return True
        if instruction.opcode == "custom-call":
            return any(f'custom_call_target="{name}' in instruction.text for name in _LIBRARIES)
        return any(self._computes_products(name) for name in instruction.called)

    @functools.cache  # noqa: B019 (a program lives as long as its report takes)
    def _computes_products(self, name: str) -> bool:
        return any(map(self._holds_products, self.computations.get(name, {}).values()))

    def _bytes(self, instruction: _Instruction, computation: dict[str, _Instruction]) -> float:
        """Bytes of memory that an instruction reads and writes.

        Of what begins and ends apart, `x-start` reads and `x-done` writes.
        """
        opcode = instruction.opcode
        operands = [computation[name].shape for name in instruction.operands if name in computation]
        if opcode in ("fusion", "fusion-start"):
            return self._fused(self.computations[instruction.called[0]], operands)
        if opcode == "fusion-done":
            return 0.0
        written = _bytes(instruction.shape)
        if opcode.endswith("-done"):
            return written
        if opcode in ("dynamic-slice", "slice", "gather"):
            near = not _bytes(operands[0])
            return written + (0.0 if near else _bytes(instruction.shape, everywhere=True))
        if opcode == "slice-start":  # gives the shapes of the array, of the slice and of a flag
            kind, sizes, _ = _ARRAY.findall(instruction.shape)[1]
            return _bytes(f"{kind}[{sizes}]")
        if opcode == "dynamic-update-slice":
            return 2 * _bytes(operands[1])
        read = sum(map(_bytes, operands), start=0.0)
        return read if opcode.endswith("-start") else read + written

    def _fused(self, computation: dict[str, _Instruction], operands: list[str]) -> float:
        """Bytes that a fusion reads and writes: of what it takes slices of, the slices alone."""
        users: dict[str, list[_Instruction]] = {}
        for instruction in computation.values():
            for name in instruction.operands:
                users.setdefault(name, []).append(instruction)

        def read(name: str) -> int:
            """Elements of an array that are looked at."""
            whole, total = _elements(computation[name].shape), 0
            for user in users.get(name, ()):
                if user.opcode in ("bitcast", "convert", "copy"):
                    total += read(user.name)
                elif user.operands[0] != name:
                    return whole
                elif user.opcode in ("dynamic-slice", "slice"):
                    total += _elements(user.shape)
                elif user.opcode != "dynamic-update-slice":  # that is done in place
                    return whole
            return min(total, whole)

        def write(name: str) -> float:
            source = computation[name]
            if source.opcode == "bitcast":
                return write(source.operands[0])
            if source.opcode == "tuple":
                return sum((write(operand) for operand in source.operands), start=0.0)
            if source.opcode == "dynamic-update-slice":
                return _bytes(computation[source.operands[1]].shape)
            return _bytes(source.shape)

        reads = 0.0
        for instruction in computation.values():
            if instruction.opcode == "parameter":
                shape = operands[int(instruction.text.partition(")")[0])]
                reads += _bytes(shape) * read(instruction.name) / max(_elements(shape), 1)
        return reads + write(next(x.name for x in computation.values() if x.root))


def _within_parentheses(text: str) -> str:
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[:i]
    return text


def _bytes(shape: str, everywhere: bool = False) -> float:
    """Size of an array or a tuple in the device's main memory, or wherever it is."""
    total = 0.0
    for kind, sizes, layout in _ARRAY.findall(shape):
        if everywhere or "S(" not in layout:  # that is a TPU's vector memory, or the host's
            total += math.prod(_numbers(sizes)) * (_BITS.get(kind) or int(kind[1:])) / 8
    return total


def _elements(shape: str) -> int:
    return sum(math.prod(_numbers(sizes)) for _, sizes, _ in _ARRAY.findall(shape))


def _first_group(text: str) -> tuple[int, ...]:
    """Devices of the first of a collective's groups, in any of the forms that XLA writes."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", text):
        return tuple(int(i) for i in match[1].split(","))
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, sizes, order = (part or "" for part in match.groups())
        return tuple(_iota(sizes, order).reshape(_numbers(shape))[0].tolist())
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? *"
        r"\{([^}]*)\}",
        text,
    ):
        mesh, sizes, order, axes = match.groups()
        return _group_of_axes(mesh, axes, _iota(sizes or "", order or ""))
    return (0,)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _iota(sizes: str, order: str) -> np.ndarray:
    """Numbers of devices, in the order of a transposed grid; one number without sizes."""
    devices = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return (devices.transpose(_numbers(order)) if order else devices).ravel()


def _group_of_axes(mesh: str, axes: str, devices: np.ndarray) -> tuple[int, ...]:
    """Devices that differ along some axes of a mesh; "'a':(2)4" is a part of an axis.

    Args:
      mesh: names and sizes of its axes.
      axes: those of the group.
      devices: of the mesh, in its order, or one number: they are numbered in it.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    if len(devices) == 1:
        devices = np.arange(math.prod(sizes.values()))
    chosen = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
    }
    shape: list[int] = []
    index: list[Any] = []
    for name, size in sizes.items():
        before, part = chosen.get(name, (1, 1))
        shape += [before, part, size // before // part]
        index += [0, slice(None) if name in chosen else 0, 0]
    return tuple(devices.reshape(shape)[tuple(index)].ravel().tolist())
