"""What a compiled program does, read from the text of its optimised HLO. Pure functions.

XLA's own `cost_analysis()` counts the body of a loop once and, for large TPU programs, gives a
negative time. Here every instruction counts as often as its loops run.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# They move no data; the computations that some of them call are counted by themselves.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
}
_LOOKUPS = ("gather", "dynamic-slice", "slice")
_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of other types, the number in their name

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array; `in_hbm` is false for those the compiler keeps in on-chip memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.dtype)
        if bits is None:  # bf16, f8e4m3fn
            bits = int(re.sub(r"\D*(\d+).*", r"\1", self.dtype))
        return -(-self.elements * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO. `shapes` has the elements of a tuple, flat; `rest` what follows operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    rest: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The value of `name={…}` or `name=word`, without braces."""
        match = re.search(rf"\b{name}=(?:\{{([^{{}}]*)\}}|([^\s,]+))", self.rest)
        return match and (match[1] if match[1] is not None else match[2])

    def called(self, name: str) -> str:
        """The computation that `name=%computation` says."""
        value = self.attribute(name)
        if value is None:
            raise ValueError(f"{self.name} names no {name}: {self.rest[:100]}")
        return value.lstrip("%")

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of one execution; None where it gives none."""
        match = _CYCLES.search(self.rest)
        return match and int(match[1])


# Kernels (Pallas) by the start of their names: matmuls over [L, L, K] in each, and cycles
# for 1,024 scores. XLA gives no cycles of a kernel, but the compiler schedules it: those are the
# lengths of its final schedules on TPU v5e (libtpu 0.0.42.1, bfloat16, 512 positions, heads of 64),
# taken from dumps by hand; grid steps run them once for each head, or two.
KERNELS = {
    "fused_attention_forward_dropout": (2, 7.7),
    "fused_attention_backward_dropout": (5, 10.1),
    "fused_attention_forward": (2, 5.2),
    "fused_attention_backward": (5, 8.0),
    "splash_mha_fwd": (2, 7.9),
    "splash_mha_dkv": (5, 12.7),  # dq too: one kernel for all gradients
}

Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of an HLO module by name, and the name of its entry."""

    computations: dict[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation and how often it runs.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of a device's array at its largest: what an all-reduce takes and gives, an all-gather
        gives, a reduce-scatter takes.
      group: the logical devices of one group; empty for all devices.
      hidden: whether it is asynchronous, so that computation may go on meanwhile.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    times: int
    hidden: bool = False

    def sent(self, devices: int) -> float:
        """Bytes a device sends in one execution, with ring algorithms, on `devices` devices."""
        size = len(self.group) or devices
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        return (2 if self.kind == "all-reduce" else 1) * self.bytes * (size - 1) / size


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            if match := _COMPUTATION.match(line):
                current = computations.setdefault(match[2], {})
                entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _parse_instruction(match[2], match[3], bool(match[1]))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an HLO module")
    return Program(computations, entry)


def _parse_instruction(name: str, text: str, is_root: bool) -> Instruction:
    """`f32[2]{0} add(%a, %b), metadata=…` -> its parts."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, _ = text[end:].lstrip().partition("(")
    start = text.index("(", end)
    stop = _closing(text, start)
    arguments = text[start + 1 : stop]
    return Instruction(
        name,
        opcode,
        shapes=_shapes(text[:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        rest=text[stop + 1 :],
        is_root=is_root,
    )


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:100]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    shapes = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = _MEMORY_SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        shapes.append(Shape(dtype, sizes, in_hbm=space is None or space[1] == "0"))
    return tuple(shapes)


def executions(program: Program) -> Iterator[tuple[Computation, Instruction, int]]:
    """Every instruction that runs by itself (not those inside fusions), and how often it does.

    Of a conditional all branches are counted.
    """

    def walk(name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        computation = program.computations[name]
        for instruction in computation.values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                body = instruction.called("body")
                yield from walk(body, times * trip_count(program, instruction))
            elif instruction.opcode == "call":
                yield from walk(instruction.called("to_apply"), times)
            elif instruction.opcode == "conditional":
                branches = instruction.attribute("branch_computations") or ",".join(
                    instruction.called(f"{value}_computation") for value in ("true", "false")
                )
                for branch in branches.split(","):
                    yield from walk(branch.strip().lstrip("%"), times)

    return walk(program.entry, 1)


def trip_count(program: Program, loop: Instruction) -> int:
    """How often a while loop runs: as XLA notes it, or else the bound its condition compares with.

    Raises:
      ValueError: neither is there, as in a loop whose end depends on data.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(match[1])
    condition = program.computations[loop.called("condition")]
    bounds = [
        int(i.arguments)
        for i in condition.values()
        if i.opcode == "constant" and i.shapes[0].dims == () and i.arguments.isdigit()
    ]
    # A scan counts from 0 while the counter is less than the one constant of its condition.
    if len(bounds) != 1:
        raise ValueError(f"the number of iterations of {loop.name} is not in the program")
    return bounds[0]


def cycles(program: Program) -> int:
    """Sum of the compiler's estimates over all executions."""
    return sum((i.cycles or 0) * times for _, i, times in executions(program))


def is_uncounted(computation: Computation, instruction: Instruction) -> bool:
    """Whether it takes time that the compiler gives no estimate of: lookups, scatters, sorts.

    Scalars and what moves no data are left aside, and so are kernels, which we count ourselves.
    """
    if instruction.opcode not in ("fusion", "gather", "scatter", "sort", "custom-call"):
        return False
    if instruction.cycles is not None or kernel(computation, instruction):
        return False
    is_small = all(shape.elements < 1024 for shape in instruction.shapes)
    return not is_small and "ConcatBitcast" not in instruction.rest


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One execution of a kernel of `KERNELS`.

    Attributes:
      flops: of its matmuls, what it recomputes included.
      cycles: our estimate, not the compiler's: see `KERNELS`.
    """

    flops: int
    cycles: float


def kernel(computation: Computation, instruction: Instruction) -> Kernel | None:
    """What the kernel that an instruction calls takes; None for others and for unknown kernels.

    Sizes are read from the queries: [B, H, L, K] with splash attention; ours notes an estimate.
    """
    known = next((name for name in KERNELS if instruction.name.startswith(name)), None)
    if instruction.opcode != "custom-call" or known is None:
        return None
    matmuls, cycles = KERNELS[known]
    if noted := re.search(r'"flops":"(\d+)","transcendentals":"(\d+)"', instruction.rest):
        count, scores = int(noted[1]), int(noted[2])  # an exponential a score
    else:
        operands = (computation[name].shapes[0].dims for name in instruction.operands)
        *heads, length, size = next(dims for dims in operands if len(dims) >= 4)
        scores = math.prod(heads) * length**2
        count = 2 * matmuls * scores * size
    return Kernel(count, cycles * scores / 1024)


def flops(program: Program, computation: Computation, instruction: Instruction) -> int:
    """FLOPs of the matmuls in one execution, those inside fusions and kernels included."""
    if known := kernel(computation, instruction):
        return known.flops
    if instruction.opcode == "dot":
        left = computation[instruction.operands[0]].shapes[0].dims
        contracted = instruction.attribute("lhs_contracting_dims") or ""
        depth = math.prod(left[int(d)] for d in contracted.split(",") if d)
        return 2 * instruction.shapes[0].elements * depth
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    if instruction.opcode == "fusion":
        called = program.computations[instruction.called("calls")]
        return sum(flops(program, called, inner) for inner in called.values())
    return 0


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """A TPU computes every matmul as a convolution; batch dimensions may become spatial ones.

    Then window positions fall on padding or between dilated elements: those are not counted.
    """
    left, right, out = re.split("_|->", instruction.called("dim_labels"))
    lhs, rhs = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    result = instruction.shapes[0].dims
    window = re.findall(r"(\w+)=([\dx_\-]+)", instruction.attribute("window") or "")
    values = {key: [int(v.split("_")[0]) for v in value.split("x")] for key, value in window}
    counts = [0] * (len(left) - 2)
    for d in range(len(counts)):
        stride, lhs_dilate, rhs_dilate = (
            values[key][d] if key in values else 1 for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        pad = values["pad"][d] if "pad" in values else 0
        end = (lhs[left.index(str(d))] - 1) * lhs_dilate
        kernel = rhs[right.index(str(d))] if rhs_dilate == 1 else 1
        # Input position o × stride + k - pad must lie within 0 … end on a multiple of lhs_dilate:
        # how many k there are for each o, without trying all (a batch may be a window of 32,768).
        for k in range(0, rhs[right.index(str(d))] * rhs_dilate, kernel * rhs_dilate):
            start = np.arange(result[out.index(str(d))], dtype=np.int64) * stride + k - pad
            low, high = np.maximum(start, 0), np.minimum(start + kernel - 1, end)
            counts[d] += int(np.maximum(high // lhs_dilate - (low - 1) // lhs_dilate, 0).sum())
    depth = rhs[right.index("i")]
    return 2 * math.prod(counts) * depth * result[out.index("b")] * result[out.index("f")]


def hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes that one execution reads from and writes to HBM; collectives count elsewhere.

    Of arrays of which parts alone are looked up, sliced or overwritten, those parts count.
    """
    opcode, shapes = instruction.opcode, instruction.shapes
    if opcode in _FREE or _collective_kind(instruction) or opcode.endswith("-done"):
        return 0
    operands = [computation[name].shapes[0] for name in instruction.operands]
    if opcode in ("copy-start", "slice-start"):  # results: target, source and a semaphore
        target = shapes[0 if opcode == "copy-start" else 1]
        return target.bytes * (target.in_hbm + operands[0].in_hbm)
    if opcode.endswith("-start"):
        return 0
    if opcode == "fusion":
        called = program.computations[instruction.called("calls")]
        root = next(i for i in called.values() if i.is_root)
        is_tuple = root.opcode == "tuple"
        parts = [called[n] for n in root.operands] if is_tuple else [root] * len(shapes)
        written = sum(
            _written(called, part, shape)
            for part, shape in zip(parts, shapes, strict=True)
            if shape.in_hbm
        )
        parameters = {int(i.arguments): i for i in called.values() if i.opcode == "parameter"}
        read = sum(
            _read(called, parameters[index], operand)
            for index, operand in enumerate(operands)
            if operand.in_hbm
        )
        return read + written
    written = sum(_written(computation, instruction, s) for s in shapes if s.in_hbm)
    if opcode in _LOOKUPS:
        return written + (shapes[0].bytes if operands[0].in_hbm else 0)
    if opcode == "dynamic-update-slice":
        return 2 * written
    return written + sum(operand.bytes for operand in operands if operand.in_hbm)


def _written(computation: Computation, instruction: Instruction, shape: Shape) -> int:
    if instruction.opcode == "dynamic-update-slice":
        return computation[instruction.operands[1]].shapes[0].bytes
    return shape.bytes


def _read(called: Computation, parameter: Instruction, operand: Shape) -> int:
    """Bytes of an operand that a fusion reads."""
    total = 0
    for user in called.values():
        if parameter.name not in user.operands:
            continue
        first = user.operands[0] == parameter.name
        if user.opcode in _LOOKUPS and first:
            total += user.shapes[0].bytes
        elif not (user.opcode == "dynamic-update-slice" and first):
            return operand.bytes
    return min(total, operand.bytes)


def collectives(program: Program) -> list[Collective]:
    """The collective operations, those inside fusions and asynchronous wrappers included."""
    found = []
    channels = set()

    def visit(instruction: Instruction, computation: Computation, times: int, inside: str) -> None:
        """`inside`: name of the computation of the fusion that holds the instruction, or ""."""
        if kind := _collective_kind(instruction):
            started = instruction.opcode.endswith("-start")
            size = sum(computation[name].shapes[0].bytes for name in instruction.operands)
            results = sum(shape.bytes for shape in instruction.shapes)
            hidden = started or bool(inside)
            if kind == "all-reduce":  # it may take float32 and reduce, and give, bfloat16
                size = results
            elif kind == "all-gather":  # asynchronous ones name the source among their results
                size = results - (size if started else 0)
            if inside.startswith("all-reduce-scatter"):  # how a TPU writes a reduce-scatter
                kind, hidden = "reduce-scatter", False
            elif inside:
                # An asynchronous collective stands in every fusion that it runs beside.
                channel = instruction.attribute("channel_id")
                if channel in channels:
                    return
                channels.add(channel)
            found.append(Collective(kind, size, _first_group(instruction), times, hidden))
        elif instruction.opcode in ("fusion", "async-start"):
            name = instruction.called("calls")
            for inner in program.computations[name].values():
                visit(inner, program.computations[name], times, name)

    for computation, instruction, times in executions(program):
        visit(instruction, computation, times, "")
    return found


def _collective_kind(instruction: Instruction) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _first_group(instruction: Instruction) -> tuple[int, ...]:
    """The logical devices of the first replica group; all groups are of one size.

    Three notations: {{0,1},{2,3}}; [2,2]<=[4] or [2,2]<=[2,2]T(1,0), an iota reshaped; and
    mesh['a'=2,'b'=2] {'b'}, the axes over which groups extend, the mesh perhaps a transposed iota:
    mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", instruction.rest):
        return (int(pairs[1]), int(pairs[2]))
    text = instruction.rest.partition("replica_groups=")[2]
    if not text or text.startswith("{}"):
        return ()
    if match := re.match(r"\{\{([\d,]+)\}", text):
        return tuple(int(i) for i in match[1].split(","))
    if match := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        dims = [int(d) for d in match[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        if match[4]:
            ids = ids.transpose([int(d) for d in match[4].split(",")])
        return tuple(ids.reshape(int(match[1]), int(match[2]))[0].tolist())
    if match := re.match(
        r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", text
    ):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        dims = [int(d) for d in match[2].split(",")] if match[2] else list(axes.values())
        ids = np.arange(math.prod(dims)).reshape(dims)
        if match[3]:
            ids = ids.transpose([int(d) for d in match[3].split(",")])
        ids = ids.reshape(list(axes.values()))
        chosen = re.findall(r"'(\w+)'", match[4])
        return tuple(ids[tuple(slice(None) if a in chosen else 0 for a in axes)].ravel().tolist())
    raise ValueError(f"replica groups of an unknown notation: {text[:100]}")
