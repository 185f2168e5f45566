"""What a training step takes on given hardware, read from the step compiled ahead of time."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import topologies

from bert_jax import files, screen
from bert_jax.cli import UserError
from bert_jax.data import input_pipeline
from bert_jax.data.placing import batch_shapes
from bert_jax.models import heads
from bert_jax.models.flops import training_flops
from bert_jax.objectives.base import Batch
from bert_jax.parallel import hardware, sharding
from bert_jax.parallel.programs import compiler_options
from bert_jax.planning import hlo
from bert_jax.runs.state import TrainState
from bert_jax.training.phases import Phase

LOG = logging.getLogger(__name__)
CACHE_VERSION = 1  # to be raised when what is cached changes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is kept of a compiled step: the text of its HLO and per-device memory, in bytes.

    A step that does not fit has no text; `memory` is then `refused_memory`'s.
    """

    text: str
    memory: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What training takes. Bytes and FLOPs are a device's, times are seconds; None: not known.

    Attributes:
      mesh, settings: axes, and the fields that matter for speed and memory.
      memory: per device, by kind; they add up to memory_needed.
      collectives: kind -> how many run in a step, and bytes that a device sends.
      state: parameters and moments beside what they would take if they were split evenly.
      estimate: "compiler", its cycles at the chip's clock; "roofline", where the compiler gives no
        cycles: then a lower bound.
      compiler_seconds: with kernels, which the compiler gives no cycles for.
      kernel_seconds: kernels' part of that: of each the longer of its schedule (`hlo.KERNELS`, by
        hand) and its bytes at full bandwidth.
      uncounted_operations, uncounted_seconds: operations without an estimate of the compiler's
        (lookups, scatters, sorts), and their bytes at full bandwidth, which is less than they take.
      roofline_seconds: of each operation the longer of its FLOPs at peak and its bytes at full
        bandwidth, added up.
      collective_seconds, hidden_collective_seconds: of those that are exposed, which the
        step's time includes; and of asynchronous ones.
      model_flops_utilization: MFU, model FLOPs over what the devices could do in the step's time.
    """

    hardware: str
    device_kind: str
    chips: int
    devices: int
    hosts: int
    mesh: dict[str, int]
    settings: dict[str, Any]
    max_seq_length: int
    max_predictions_per_seq: int
    num_steps: int
    memory: dict[str, int]
    memory_needed: int
    memory_available: int | None
    fits: bool | None
    would_fit: list[str]
    model_flops: float
    state: sharding.Memory
    flops: float | None = None
    hbm_bytes: float | None = None
    collectives: dict[str, dict[str, float]] | None = None
    estimate: str | None = None
    compiler_seconds: float | None = None
    kernel_seconds: float | None = None
    uncounted_operations: int | None = None
    uncounted_seconds: float | None = None
    collective_seconds: float | None = None
    hidden_collective_seconds: float | None = None
    roofline_seconds: float | None = None
    step_seconds: float | None = None
    sequences_per_second: float | None = None
    tokens_per_second: float | None = None
    model_flops_utilization: float | None = None
    hours: float | None = None
    chip_hours: float | None = None


def open_devices(topology: str, num_slices: int = 1) -> list[jax.Device]:
    """The devices of TPU slices, for compilation alone; this machine's for "".

    Raises:
      UserError: an unknown chip or shape, or libtpu is not installed.
    """
    if not topology:
        return jax.devices()
    names = [chip.name for chip in hardware.CHIPS if chip.clock_hz]
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
    if not match or match[1] not in names:
        raise UserError(
            f"topology {topology!r} is not known: expected CHIP:SHAPE with a chip of "
            f"{', '.join(names)}, e.g. --topology=v5e:16x16 or --topology=v5p:8x8x8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {topology} needs libtpu, which is not installed: "
            "pip install 'bert_jax[tpu]' (Linux; no TPU needed)"
        )
    # Compiling for absent devices must not take hold of those that are here.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # unreadable without the devices
    # No TPU is there to be looked for, and several planners may run at once.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if set(match[2]) <= {"1", "x"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(topology, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"libtpu refuses the topology {topology}: {error}. Slices have 2 dimensions for v5e "
            "and v6e (4x4, 8x16), 3 for v4 and v5p (4x4x8)"
        ) from None
    return list(described.devices)


def compile_step(
    lowered: jax.stages.Lowered, hardware_name: str, options: dict[str, Any]
) -> Compiled:
    """Compiles, or takes from the cache what the same program, compiler and flags gave before."""
    versions = [importlib.metadata.version("jaxlib"), hardware_name]
    if importlib.util.find_spec("libtpu"):
        versions.append(importlib.metadata.version("libtpu"))
    # The lowered step is compiled with its own options, which its text does not show.
    versions += [json.dumps(options)] if options else []
    versions += [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    parts = (str(CACHE_VERSION), *versions, lowered.as_text())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    # Beside JAX's own cache, which cannot be read without the devices.
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR") or tempfile.gettempdir()
    path = epath.Path(kept) / f"plan-{digest[:32]}.json.gz"
    if path.exists():
        return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
    start = time.monotonic()
    try:
        with screen.Stage("compiling", show=LOG.isEnabledFor(logging.INFO)):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        result = Compiled("", refused_memory(str(error)))
    else:
        stats = compiled.memory_analysis()
        kinds = ("argument", "output", "alias", "temp", "generated_code")
        memory = {kind: int(getattr(stats, f"{kind}_size_in_bytes")) for kind in kinds}
        result = Compiled(compiled.as_text() or "", memory)
    LOG.info("  compiled in %.0f s", time.monotonic() - start)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, gzip.compress(json.dumps(dataclasses.asdict(result)).encode()))
    return result


def refused_memory(message: str) -> dict[str, int]:
    """What a step that does not fit needs, from the compiler's message.

    "… Used 20.60G of 15.75G hbm" -> {"needed": …}, all together; "… required for HLO temporaries
    (198.35G) exceeds available HBM …" -> {"temp": …}, beside the state.

    Raises:
      UserError: the message is of something else.
    """
    for kind, pattern in (
        ("needed", r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"),
        ("temp", r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM"),
    ):
        if match := re.search(pattern, message):
            return {kind: int(float(match[1]) * 2 ** (10 * (1 + "KMGT".index(match[2]))))}
    cause = " ".join(message.split())[:500]
    # On-chip memory, which a kernel takes whatever the batch.
    advice = ": set --config.model.attention=xla" if "vmem" in message else ""
    raise UserError(f"the compiler refuses the step ({cause}){advice}")


def lower_step(
    phase: Phase, mesh: jax.sharding.Mesh, max_seq_length: int, max_predictions_per_seq: int
) -> tuple[jax.stages.Lowered, TrainState, Batch]:
    """The step that pretraining runs in `phase`, ready to compile, and its arguments as shapes."""
    state, batch = step_arguments(phase, mesh, max_seq_length, max_predictions_per_seq)
    step = phase.make_train_step(heads.make_model(phase.config), mesh)
    return step.lower(state, batch), state, batch


def step_arguments(
    phase: Phase, mesh: jax.sharding.Mesh, max_seq_length: int, max_predictions_per_seq: int
) -> tuple[TrainState, Batch]:
    """State and batch as shapes, laid out on the mesh."""
    config = phase.config
    state = phase.abstract_state(heads.make_model(config), mesh)
    shapes = batch_shapes(
        config.batch_size, max_seq_length, max_predictions_per_seq, config.packing
    )
    return state, sharding.abstract_batch(shapes, mesh)


def make_plan(
    phase: Phase,
    devices: Sequence[jax.Device],
    max_seq_length: int,
    max_predictions_per_seq: int,
    hardware_name: str = "",
) -> Plan:
    """Compiles the step of `phase` for `devices` and reads from it what its training takes."""
    config = phase.config
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    input_pipeline.check_batch(config, mesh)
    hosts = len({device.process_index for device in devices})
    chip = hardware.chip_of(devices[0])
    share = hardware.share_of_chip(devices[0], chip) if chip else 1.0
    available = int(chip.memory_bytes * share) if chip else None
    limit = available
    if not hardware_name:  # this machine: what JAX may take of a device, as in pretraining
        limit = hardware.memory_of_device(jax.local_devices()[0])
        available = limit if chip else None
    arguments = step_arguments(phase, mesh, max_seq_length, max_predictions_per_seq)
    if limit and sharding.memory_of(arguments).per_device > limit:
        available, compiled = limit, Compiled("", {"temp": 0})  # nothing to compile for
        state, batch = arguments
    else:
        lowered, state, batch = lower_step(phase, mesh, max_seq_length, max_predictions_per_seq)
        compiled = compile_step(
            lowered, f"{hardware_name} {devices[0].device_kind}", compiler_options(mesh)
        )

    memory = _memory_by_kind(compiled, state, batch)
    needed = sum(memory.values())
    fits = None
    if devices[0].platform == "tpu":
        fits = bool(compiled.text)  # the compiler knows exactly
    elif available:
        fits = needed <= available
    model = heads.make_model(config).config
    model_flops = training_flops(model, max_seq_length, max_predictions_per_seq, config.batch_size)
    plan = Plan(
        hardware=hardware_name or f"this machine ({devices[0].device_kind})",
        device_kind=devices[0].device_kind,
        chips=math.ceil(len(devices) * share),
        devices=len(devices),
        hosts=hosts,
        mesh=dict(mesh.shape),
        settings={
            "batch_size": config.batch_size,
            "packing": config.packing,
            "accumulate_steps": config.accumulate_steps,
            **{
                name: config.model[name]
                for name in ("remat", "dropout_rng", "attention", "scan_layers")
                if name in config.model  # not every encoder can scan its layers
            },
        },
        max_seq_length=max_seq_length,
        max_predictions_per_seq=max_predictions_per_seq,
        num_steps=phase.stop - phase.start,
        memory=memory,
        memory_needed=needed,
        memory_available=available,
        fits=fits,
        would_fit=[],
        model_flops=model_flops / len(devices),
        state=sharding.memory_of(state),
    )
    if not compiled.text:
        return plan
    plan = dataclasses.replace(plan, **_traffic(compiled, mesh, chip, share, plan.model_flops))
    return dataclasses.replace(plan, **_throughput(plan, chip, share))


def _memory_by_kind(compiled: Compiled, state: TrainState, batch: Batch) -> dict[str, int]:
    of_params, of_state = sharding.memory_of(state.params), sharding.memory_of(state)
    memory = {
        "parameters": of_params.per_device,
        "optimizer state": of_state.per_device - of_params.per_device,
        "batch": sharding.memory_of(batch).per_device,
    }
    sizes = compiled.memory
    if not compiled.text:
        if "temp" in sizes:
            return memory | {"activations and gradients": sizes["temp"]}
        return memory | {
            "activations and gradients": max(sizes["needed"] - sum(memory.values()), 0)
        }
    return memory | {
        # Outputs take the place of the state; tiling pads some arrays.
        "padding and outputs": sizes["argument"]
        - sum(memory.values())
        + sizes["output"]
        - sizes["alias"],
        "activations and gradients": sizes["temp"],
        "program": sizes["generated_code"],
    }


def _traffic(
    compiled: Compiled,
    mesh: jax.sharding.Mesh,
    chip: hardware.Chip | None,
    share: float,
    model_flops: float,
) -> dict[str, Any]:
    """FLOPs, bytes, collectives and times, from the text of the compiled step."""
    program = hlo.parse(compiled.text)
    flops = hbm_bytes = roofline = kernels = uncounted = 0.0
    operations = 0
    for computation, instruction, times in hlo.executions(program):
        f = hlo.flops(program, computation, instruction) * times
        b = hlo.hbm_bytes(program, computation, instruction) * times
        flops, hbm_bytes = flops + f, hbm_bytes + b
        if chip:
            bytes_seconds = b / (chip.memory_bandwidth * share)
            roofline += max(f / (chip.peak_flops * share), bytes_seconds)
            if hlo.is_uncounted(computation, instruction):
                operations += times
                uncounted += bytes_seconds
            kernel = hlo.kernel(computation, instruction)
            if kernel and chip.clock_hz:
                kernels += max(kernel.cycles * times / chip.clock_hz, bytes_seconds)
    kinds: dict[str, dict[str, float]] = {}
    exposed = hidden = 0.0
    devices = list(mesh.devices.flat)
    for collective in hlo.collectives(program):
        sent = collective.sent(len(devices)) * collective.times
        kind = kinds.setdefault(collective.kind, {"count": 0, "bytes": 0.0})
        kind["count"] += collective.times
        kind["bytes"] += sent
        if chip:
            group = [devices[i] for i in collective.group] or devices
            seconds = sent / (hardware.group_bandwidth(chip, group, devices) * share)
            exposed += 0.0 if collective.hidden else seconds
            hidden += seconds if collective.hidden else 0.0
    if not chip:
        return {"flops": flops, "hbm_bytes": hbm_bytes, "collectives": kinds}
    # Matmuls in library calls (cuBLAS) are not in the text: the model needs so many at least.
    roofline = max(roofline, model_flops / (chip.peak_flops * share))
    cycles = hlo.cycles(program)
    compiler = None
    if chip.clock_hz and cycles:
        compiler = cycles / chip.clock_hz + kernels + uncounted
    return {
        "flops": flops,
        "hbm_bytes": hbm_bytes,
        "collectives": kinds,
        "roofline_seconds": roofline,
        "compiler_seconds": compiler,
        "kernel_seconds": kernels if compiler else None,
        "uncounted_operations": operations if compiler else None,
        "uncounted_seconds": uncounted if compiler else None,
        # Asynchronous ones cost what they take beyond the computation.
        "collective_seconds": exposed + max(0.0, hidden - (compiler or roofline)),
        "hidden_collective_seconds": hidden,
    }


def _throughput(plan: Plan, chip: hardware.Chip | None, share: float) -> dict[str, Any]:
    compute = plan.compiler_seconds or plan.roofline_seconds
    if not chip or compute is None or plan.collective_seconds is None:
        return {}
    step = compute + plan.collective_seconds
    batch, hours = plan.settings["batch_size"], step * plan.num_steps / 3600
    return {
        "estimate": "compiler" if plan.compiler_seconds else "roofline",
        "step_seconds": step,
        "sequences_per_second": batch / step,
        "tokens_per_second": batch * plan.max_seq_length / step,
        "model_flops_utilization": plan.model_flops / (chip.peak_flops * share * step),
        "hours": hours,
        "chip_hours": hours * plan.chips,
    }
