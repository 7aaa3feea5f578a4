"""Counts the memory traffic and the collectives of a compiled program.

The body of a loop counts once per iteration. The branch of a conditional with the most memory
traffic counts, and its other branches do not. The input is the text of XLA's optimised HLO, for any
platform.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator
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
_MATMULS = ("dot", "convolution")
_PREFETCHES = ("copy-start", "copy-done", "slice-start", "slice-done")
_LIBRARIES = ("__cublas", "__cudnn", "tpu_custom_call", "__onednn")
_WORKSPACES = ("__cublas", "__cudnn")  # their calls return it, as the last element of a tuple


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective instruction, with the number of its executions.

    Attributes:
      kind: one of `COLLECTIVES`.
      times: how often it runs.
      operand_bytes: bytes of its operands on one device.
      group: positions in the mesh of the devices of one group.
    """

    kind: str
    times: int
    operand_bytes: float
    group: tuple[int, ...]

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all executions, if each is implemented as a ring."""
        n = len(self.group)
        factors = {
            "all-gather": n - 1,
            "all-reduce": 2 * (n - 1) / n,
            "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "collective-permute": 1,
        }
        return self.operand_bytes * factors[self.kind] * self.times


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Memory traffic and collectives of a program, per device.

    Attributes:
      matmuls: bytes that instructions with matmuls or convolutions read and write, and bytes that
        are prefetched during other instructions.
      rest: bytes that all other instructions read and write.
      collectives: the collectives between devices.
    """

    matmuls: float
    rest: float
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that is executed on its own, rather than as part of a fusion.

    Attributes:
      name: name in the HLO; for a custom call, often the name of its kernel.
      times: how often it runs.
      opcode: such as "fusion" or "custom-call".
      shape: shape of its result, or of the tuple of its results.
      operands: shapes of its operands.
      text: its operands, and the rest of its line of HLO.
    """

    name: str
    times: int
    opcode: str
    shape: str
    operands: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str  # the rest of the line after the opcode
    root: bool

    @property
    def called(self) -> list[str]:
        return re.findall(r"[\w.\-]+", " ".join(_CALLED.findall(self.text)))


def traffic(text: str) -> Traffic:
    """Adds up the traffic of one execution of a program."""
    return _Program(text).traffic()


def executed(text: str) -> list[Executed]:
    """Lists the instructions that one execution of a program executes on their own."""
    program = _Program(text)
    return [
        Executed(
            x.name,
            times,
            x.opcode,
            x.shape,
            tuple(computation[name].shape for name in x.operands if name in computation),
            x.text,
        )
        for times, x, computation in program.run(program.entry, 1)
    ]


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if match := _INSTRUCTION.match(line):
                root, name, shape, opcode, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", _within_parentheses(rest)))
                _add_elements(current, operands)
                current[name] = _Instruction(name, shape, opcode, operands, rest, bool(root))
            elif match := _HEADER.match(line):
                current = self.computations[match[2]] = {}
                if match[1]:
                    self.entry = match[2]

    def traffic(self) -> Traffic:
        matmuls = rest = 0.0
        collectives = []
        for times, instruction, computation in self.run(self.entry, 1):
            moved = times * self._bytes(instruction, computation)
            if self._holds_matmuls(instruction) or instruction.opcode in _PREFETCHES:
                matmuls += moved
            else:
                rest += moved
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES and len(group := _first_group(instruction.text)) > 1:
                operands = [computation[name].shape for name in instruction.operands]
                size = sum((_bytes(shape, everywhere=True) for shape in operands), start=0.0)
                collectives.append(Collective(kind, times, size, group))
        return Traffic(matmuls, rest, tuple(collectives))

    def run(
        self, name: str, times: int
    ) -> Iterator[tuple[int, _Instruction, dict[str, _Instruction]]]:
        """Yields (number of executions, instruction, its computation) for each executed one."""
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

    def _moved(self, branch: list[tuple[int, _Instruction, dict[str, _Instruction]]]) -> float:
        moved = (times * self._bytes(x, computation) for times, x, computation in branch)
        return sum(moved, start=0.0)

    def _trips(self, loop: _Instruction) -> int:
        if count := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(count[1])
        # HLO for TPUs has no trip count; the loop's condition compares the counter to a constant.
        condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
        limits = [
            int(constant[1])
            for instruction in self.computations[condition[1] if condition else ""].values()
            if instruction.opcode == "constant"
            and (constant := re.match(r"(\d+)\)", instruction.text))
        ]
        return max(limits, default=1)

    def _holds_matmuls(self, instruction: _Instruction) -> bool:
        if instruction.opcode in _MATMULS:
            return True
        if instruction.opcode == "custom-call":
            return any(f'custom_call_target="{name}' in instruction.text for name in _LIBRARIES)
        return any(self._computes_matmuls(name) for name in instruction.called)

    @functools.cache  # noqa: B019 (a program lives as long as its report takes)
    def _computes_matmuls(self, name: str) -> bool:
        return any(map(self._holds_matmuls, self.computations.get(name, {}).values()))

    def _bytes(self, instruction: _Instruction, computation: dict[str, _Instruction]) -> float:
        """Bytes of memory that an instruction reads and writes.

        For asynchronous pairs, reads are counted at `x-start` and writes at `x-done`.
        """
        opcode = instruction.opcode
        operands = [computation[name].shape for name in instruction.operands if name in computation]
        if opcode in ("fusion", "fusion-start"):
            return self._fused(self.computations[instruction.called[0]], operands)
        if opcode == "fusion-done":
            return 0.0
        written = _bytes(_without_workspace(instruction))
        if opcode.endswith("-done"):
            return written
        if opcode in ("dynamic-slice", "slice", "gather"):
            near = not _bytes(operands[0])
            return written + (0.0 if near else _bytes(instruction.shape, everywhere=True))
        if opcode == "slice-start":  # its shape lists the array, the slice and a flag
            kind, sizes, _ = _ARRAY.findall(instruction.shape)[1]
            return _bytes(f"{kind}[{sizes}]")
        if opcode == "dynamic-update-slice":
            return 2 * _bytes(operands[1])
        read = sum(map(_bytes, operands), start=0.0)
        return read if opcode.endswith("-start") else read + written

    def _fused(self, computation: dict[str, _Instruction], operands: list[str]) -> float:
        """Bytes that a fusion reads and writes; of an array that it slices, only the slices."""
        users: dict[str, list[_Instruction]] = {}
        for instruction in computation.values():
            for name in instruction.operands:
                users.setdefault(name, []).append(instruction)

        def read(name: str) -> int:
            """Number of elements of an array that are read."""
            whole, total = _elements(computation[name].shape), 0
            for user in users.get(name, ()):
                if user.opcode in ("bitcast", "convert", "copy"):
                    total += read(user.name)
                elif user.operands[0] != name:
                    return whole
                elif user.opcode in ("dynamic-slice", "slice"):
                    total += _elements(user.shape)
                elif user.opcode != "dynamic-update-slice":  # which works in place
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


def _add_elements(computation: dict[str, _Instruction], operands: Iterable[str]) -> None:
    """Adds an instruction for each operand "name#i", which is how newer versions of XLA write
    element i of a tuple."""
    for operand in operands:
        name, _, index = operand.partition("#")
        if index and name in computation:
            shape = _split_tuple(computation[name].shape)[int(index)]
            element = _Instruction(operand, shape, "get-tuple-element", (name,), "", False)
            computation[operand] = element


def _without_workspace(instruction: _Instruction) -> str:
    """The shape of the result; of a library's call, without its last element, the workspace."""
    calls = any(f'custom_call_target="{name}' in instruction.text for name in _WORKSPACES)
    if not calls or not instruction.shape.startswith("("):
        return instruction.shape
    *results, _ = _split_tuple(instruction.shape)
    return f"({', '.join(results)})"


def _split_tuple(shape: str) -> list[str]:
    """The shapes of a tuple's elements."""
    parts, depth = [""], 0
    for character in re.sub(r"/\*.*?\*/", "", shape)[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _within_parentheses(text: str) -> str:
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[:i]
    return text


def _bytes(shape: str, everywhere: bool = False) -> float:
    """Bytes of an array or tuple that lie in the device's main memory, or in any memory."""
    total = 0.0
    for kind, sizes, layout in _ARRAY.findall(shape):
        if everywhere or "S(" not in layout:  # "S(n)" marks a TPU's vector memory, or host memory
            total += math.prod(_numbers(sizes)) * (_BITS.get(kind) or int(kind[1:])) / 8
    return total


def _elements(shape: str) -> int:
    return sum(math.prod(_numbers(sizes)) for _, sizes, _ in _ARRAY.findall(shape))


def _first_group(text: str) -> tuple[int, ...]:
    """Devices in the first group of a collective, parsed from any of XLA's notations."""
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
    """Device numbers in XLA's iota notation: those of a transposed grid of the given sizes."""
    devices = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return (devices.transpose(_numbers(order)) if order else devices).ravel()


def _group_of_axes(mesh: str, axes: str, devices: np.ndarray) -> tuple[int, ...]:
    """The first group of devices that differ only along some axes of a mesh.

    Args:
      mesh: names and sizes of the mesh's axes.
      axes: the axes of the group; "'a':(2)4" stands for a part of axis a.
      devices: device numbers in the order of the mesh; a single number if they are in order.
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
