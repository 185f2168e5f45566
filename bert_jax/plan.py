"""Command: what a config will take on given hardware, before any of it is booked.

The exact training step is compiled ahead of time for the topology, on any Linux machine; memory,
collectives and the compiler's estimate of the time are read from the result.
"""

import argparse
import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import math
import os
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from jax.experimental import topologies

from bert_jax import config as config_lib
from bert_jax import hardware, hlo, input_pipeline, records, sharding, train
from bert_jax.cli import UserError, run

USAGE = """\
usage: python -m bert_jax.plan --config=configs/bert_base.py --topology=v5e:16x16 \\
         [--sweep=batch_size,fsdp,remat] [--json] [--config.FIELD=VALUE …]

Compiles the config's training step for hardware that need not be there and prints memory, step
time, throughput and hours. TPU slices need the `tpu` extra (on Linux), not a TPU.

  --topology: a TPU slice, v4, v5e, v5p or v6e: v5e:16x16, v5p:8x8x8; by default this machine's
    devices.
  --max_seq_length, --max_predictions_per_seq: by default those of config.data_dir if that is
    given, else 128 tokens, and predictions for 15 % of them.
  --sweep: fields to try values of, from batch_size, accumulate_steps, data, fsdp, tensor, remat,
    scan_layers; values of your own after "=": --sweep=batch_size=8192:16384,remat. Prints what
    was tried and the fastest that fits.
  --json: figures as one JSON object: bytes, seconds, hours.
"""
LOG = logging.getLogger(__name__)
# Short names of the fields that --sweep takes.
SWEPT = {
    "batch_size": "batch_size",
    "accumulate_steps": "accumulate_steps",
    "data": "mesh.data",
    "fsdp": "mesh.fsdp",
    "tensor": "mesh.tensor",
    "remat": "model.remat",
    "scan_layers": "model.scan_layers",
}
CACHE_VERSION = 1  # to be raised when what is cached changes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is kept of a compiled step: the text of its HLO and per-device memory, in bytes.

    A step that does not fit has no text; `memory["needed"]` is what the compiler says it needs.
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
      estimate: "compiler", its cycles at the chip's clock, plus collectives as if nothing ran
        meanwhile; "roofline", where the compiler gives no cycles: then a lower bound.
      roofline_seconds: of each operation the longer of its FLOPs at peak and its bytes at full
        bandwidth, added up.
      utilisation: model FLOPs over what the devices could do in the step's time.
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
    flops: float | None = None
    hbm_bytes: float | None = None
    collectives: dict[str, dict[str, float]] | None = None
    estimate: str | None = None
    compiler_seconds: float | None = None
    collective_seconds: float | None = None
    roofline_seconds: float | None = None
    step_seconds: float | None = None
    sequences_per_second: float | None = None
    tokens_per_second: float | None = None
    utilisation: float | None = None
    hours: float | None = None
    chip_hours: float | None = None


def open_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, for compilation alone; this machine's for "".

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
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if set(match[2]) <= {"1", "x"} else {}
    try:
        described = topologies.get_topology_desc(topology, platform="tpu", **one_chip)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"libtpu refuses the topology {topology}: {error}. Slices have 2 dimensions for v5e "
            "and v6e (4x4, 8x16), 3 for v4 and v5p (4x4x8)"
        ) from None
    return list(described.devices)


def compile_step(lowered: jax.stages.Lowered, hardware_name: str) -> Compiled:
    """Compiles, or takes from the cache what the same program, compiler and flags gave before."""
    versions = [importlib.metadata.version("jaxlib"), hardware_name]
    if importlib.util.find_spec("libtpu"):
        versions.append(importlib.metadata.version("libtpu"))
    versions += [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    parts = (str(CACHE_VERSION), *versions, lowered.as_text())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    # Beside JAX's own cache, which cannot be read without the devices.
    path = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"], f"plan-{digest[:32]}.json.gz")
    if path.exists():
        return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        result = Compiled("", {"needed": needed_bytes(str(error))})
    else:
        stats = compiled.memory_analysis()
        kinds = ("argument", "output", "alias", "temp", "generated_code")
        memory = {kind: int(getattr(stats, f"{kind}_size_in_bytes")) for kind in kinds}
        result = Compiled(compiled.as_text(), memory)
    LOG.info("  compiled in %.0f s", time.monotonic() - start)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(gzip.compress(json.dumps(dataclasses.asdict(result)).encode()))
    partial.replace(path)
    return result


def needed_bytes(message: str) -> int:
    """The bytes of "Ran out of memory … Used 20.60G of 15.75G hbm"; other errors are raised."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    if not match:
        raise UserError(f"the compiler refuses the step: {message[:2000]}")
    return int(float(match[1]) * 2 ** (10 * (1 + "KMGT".index(match[2]))))


def make_plan(
    config: ml_collections.ConfigDict,
    devices: Sequence[jax.Device],
    max_seq_length: int,
    max_predictions_per_seq: int,
    hardware_name: str = "",
) -> Plan:
    """Compiles `config`'s step for `devices` and reads from it what training takes."""
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    input_pipeline.check_batch(config, mesh)
    hosts = len({device.process_index for device in devices})
    chip = hardware.chip_of(devices[0])
    share = hardware.share_of_chip(devices[0], chip) if chip else 1.0
    lowered, state = train.lower_train_step(config, mesh, max_seq_length, max_predictions_per_seq)
    compiled = compile_step(lowered, f"{hardware_name} {devices[0].device_kind}")

    memory = _memory_by_kind(compiled, state, config, mesh, max_seq_length, max_predictions_per_seq)
    needed = sum(memory.values())
    available = int(chip.memory_bytes * share) if chip else None
    fits = None
    if devices[0].platform == "tpu":
        fits = bool(compiled.text)  # the compiler knows exactly
    elif available:
        fits = needed <= available
    model = train.make_model(config).config
    model_flops = hardware.training_flops(
        model, max_seq_length, max_predictions_per_seq, config.batch_size
    )
    plan = Plan(
        hardware=hardware_name or f"this machine ({devices[0].device_kind})",
        device_kind=devices[0].device_kind,
        chips=math.ceil(len(devices) * share),
        devices=len(devices),
        hosts=hosts,
        mesh=dict(mesh.shape),
        settings={
            "batch_size": config.batch_size,
            "accumulate_steps": config.accumulate_steps,
            "remat": config.model.remat,
            "scan_layers": config.model.scan_layers,
        },
        max_seq_length=max_seq_length,
        max_predictions_per_seq=max_predictions_per_seq,
        num_steps=config.num_steps,
        memory=memory,
        memory_needed=needed,
        memory_available=available,
        fits=fits,
        would_fit=[],
        model_flops=model_flops / len(devices),
    )
    if not compiled.text:
        return plan
    plan = dataclasses.replace(plan, **_traffic(compiled, mesh, chip, share, plan.model_flops))
    return dataclasses.replace(plan, **_throughput(plan, chip, share))


def _memory_by_kind(
    compiled: Compiled,
    state: train.TrainState,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    max_seq_length: int,
    max_predictions_per_seq: int,
) -> dict[str, int]:
    def per_device(tree: Any) -> int:
        return sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    shapes = input_pipeline.batch_shapes(
        config.batch_size, max_seq_length, max_predictions_per_seq
    ).values()
    batch = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
    params = per_device(state.params)
    memory = {
        "parameters": params,
        "optimizer state": per_device(state) - params,
        "batch": batch // (mesh.shape["data"] * mesh.shape["fsdp"]),
    }
    sizes = compiled.memory
    if not compiled.text:
        rest = sizes["needed"] - sum(memory.values())
        return memory | {"activations, gradients, program": max(rest, 0)}
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
    flops = hbm_bytes = roofline = 0.0
    for computation, instruction, times in hlo.executions(program):
        f = hlo.flops(program, computation, instruction) * times
        b = hlo.hbm_bytes(program, computation, instruction) * times
        flops, hbm_bytes = flops + f, hbm_bytes + b
        if chip:
            roofline += max(f / (chip.peak_flops * share), b / (chip.memory_bandwidth * share))
    kinds: dict[str, dict[str, float]] = {}
    seconds = 0.0
    devices = list(mesh.devices.flat)
    for collective in hlo.collectives(program):
        sent = collective.sent(len(devices)) * collective.times
        kind = kinds.setdefault(collective.kind, {"count": 0, "bytes": 0.0})
        kind["count"] += collective.times
        kind["bytes"] += sent
        if chip:
            group = [devices[i] for i in collective.group] or devices
            seconds += sent / hardware.group_bandwidth(chip, group, devices)
    cycles = hlo.cycles(program)
    # Products in library calls (cuBLAS) are not in the text: the model needs so many at least.
    if chip:
        roofline = max(roofline, model_flops / (chip.peak_flops * share))
    return {
        "flops": flops,
        "hbm_bytes": hbm_bytes,
        "collectives": kinds,
        "collective_seconds": seconds if chip else None,
        "roofline_seconds": roofline if chip else None,
        "compiler_seconds": cycles / chip.clock_hz if chip and chip.clock_hz and cycles else None,
    }


def _throughput(plan: Plan, chip: hardware.Chip | None, share: float) -> dict[str, Any]:
    if not chip:
        return {}
    compute = plan.compiler_seconds or plan.roofline_seconds
    step = compute + plan.collective_seconds
    batch, hours = plan.settings["batch_size"], step * plan.num_steps / 3600
    return {
        "estimate": "compiler" if plan.compiler_seconds else "roofline",
        "step_seconds": step,
        "sequences_per_second": batch / step,
        "tokens_per_second": batch * plan.max_seq_length / step,
        "utilisation": plan.model_flops / (chip.peak_flops * share * step),
        "hours": hours,
        "chip_hours": hours * plan.chips,
    }


def what_would_fit(
    config: ml_collections.ConfigDict, plan: Plan, devices: Sequence[jax.Device], **lengths: Any
) -> list[str]:
    """Single fields that make `config` fit, each compiled to be sure, as flags."""
    state = plan.memory["parameters"] + plan.memory["optimizer state"]
    rest = plan.memory_needed - state
    room = plan.memory_available - state
    changes: list[dict[str, Any]] = []
    if room > 0:
        rows = plan.settings["batch_size"] // (plan.mesh["data"] * plan.mesh["fsdp"])
        parts = plan.settings["accumulate_steps"] * 2 ** math.ceil(math.log2(rest / room))
        parts = max(parts, 2 * plan.settings["accumulate_steps"])
        changes += [{"accumulate_steps": n} for n in (parts, 2 * parts) if rows % n == 0]
    if plan.settings["remat"] != "full":
        changes.append({"remat": "full"})
    groups = plan.mesh["data"] * plan.mesh["fsdp"]
    if state > room / 4:
        changes += [{"data": -1, "fsdp": n} for n in (8, 64) if groups % n == 0 and n <= groups]
    fitting = []
    for change in changes:
        flags = _as_flags(change)
        if any(flag.partition("=")[0] == flags.partition("=")[0] for flag in fitting):
            continue  # the smaller of two values was enough
        LOG.info("does not fit; trying %s", flags)
        changed = make_plan(_changed(config, change), devices, **lengths)
        if changed.fits:
            fitting.append(flags)
    return fitting


def _changed(
    config: ml_collections.ConfigDict, change: dict[str, Any]
) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({SWEPT[name]: value for name, value in change.items()})
    return config


def _as_flags(change: dict[str, Any]) -> str:
    return " ".join(f"--config.{SWEPT[name]}={value}" for name, value in change.items())


def sweep(
    config: ml_collections.ConfigDict,
    grid: dict[str, list[Any]],
    devices: Sequence[jax.Device],
    **lengths: Any,
) -> list[tuple[dict[str, Any], Plan]]:
    """Plans of all combinations of `grid`'s values that the mesh allows, fastest first.

    More remat or a larger batch are not tried where they cannot win: remat beyond what fits
    already, batches beyond what does not fit with full remat.
    """
    tried: list[tuple[dict[str, Any], Plan]] = []

    def pointless(change: dict[str, Any]) -> bool:
        for other, plan in tried:
            same = {k for k in change if change[k] == other[k]}
            if plan.fits and set(change) - same == {"remat"}:
                return True
            smaller = other.get("batch_size", 0) < change.get("batch_size", 0)
            if plan.fits is False and smaller and set(change) - same == {"batch_size"}:
                return True
        return False

    for values in itertools.product(*grid.values()):
        change = dict(zip(grid, values, strict=True))
        if pointless(change):
            continue
        LOG.info("trying %s", _as_flags(change))
        try:
            plan = make_plan(_changed(config, change), devices, **lengths)
        except UserError as error:  # a mesh or batch that does not divide
            LOG.info("  left out: %s", error)
            continue
        tried.append((change, plan))
    if not tried:
        raise UserError(f"no combination of {', '.join(grid)} divides over {len(devices)} devices")
    return sorted(
        tried, key=lambda pair: (pair[1].fits is False, -(pair[1].sequences_per_second or 0))
    )


def parse_grid(text: str, config: ml_collections.ConfigDict, devices: int) -> dict[str, list[Any]]:
    """'batch_size,fsdp=1:16' -> {'batch_size': [...], 'fsdp': [1, 16]}, remat last."""
    defaults: dict[str, list[Any]] = {
        "batch_size": [devices * n for n in (32, 64, 128, 256)],
        "accumulate_steps": [1, 2, 4],
        "data": [-1],
        "fsdp": [n for n in (1, 16) if devices % n == 0],
        "tensor": [n for n in (1, 2, 4) if devices % n == 0],
        "remat": ["none", "dots", "full"],
        "scan_layers": [False, True],
    }
    grid = {}
    for part in text.split(","):
        name, _, values = part.partition("=")
        if name not in SWEPT:
            raise UserError(f"--sweep cannot vary {name!r}: it knows {', '.join(SWEPT)}")
        grid[name] = defaults[name]
        if values:
            kind = type(defaults[name][0])
            try:
                convert = {"True": True, "False": False}.__getitem__ if kind is bool else kind
                grid[name] = [convert(value) for value in values.split(":")]
            except (KeyError, ValueError):
                raise UserError(
                    f"--sweep: {values!r} are not values of {name}; write them like "
                    f"{name}={':'.join(map(str, defaults[name]))}"
                ) from None
    # In this order, what cannot win is known before its turn.
    last = ("batch_size", "remat")
    names = [n for n in grid if n not in last] + [n for n in last if n in grid]
    return {name: grid[name] for name in names}


def describe(plan: Plan) -> str:
    """The plan as text for people."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items())
    devices = "" if plan.devices == plan.chips else f", {plan.devices} devices"
    lines = [
        f"{plan.hardware}: {plan.chips} chips{devices}, {plan.hosts} hosts",
        f"mesh {mesh}; {settings}",
        f"{plan.max_seq_length} tokens and {plan.max_predictions_per_seq} predictions a sequence",
        "",
        "memory a device",
        *(f"  {_gib(size):>11}  {kind}" for kind, size in plan.memory.items()),
    ]
    if plan.memory_available:
        verdict = {True: "fits", False: "DOES NOT FIT", None: ""}[plan.fits]
        total = f"  {_gib(plan.memory_needed):>11}  of {_gib(plan.memory_available)}: {verdict}"
    else:
        total = f"  {_gib(plan.memory_needed):>11}  in all; this device's memory is not known"
    lines.append(total)
    if plan.fits is False:
        lines += ["", "each of these alone makes it fit:" if plan.would_fit else NOTHING_FITS]
        lines += [f"  {flags}" for flags in plan.would_fit]
        return "\n".join(lines)
    lines += ["", "collectives a step (bytes that a device sends)"]
    for kind, figures in plan.collectives.items():
        lines.append(f"  {figures['bytes'] / 1e6:8.1f} MB  {figures['count']} × {kind}")
    if not plan.collectives:
        lines.append("  none")
    lines += [
        "",
        f"FLOPs a device and step: {plan.model_flops:.3e} of the model, {plan.flops:.3e} in the "
        f"program; {plan.hbm_bytes / 1e9:.1f} GB from and to memory",
    ]
    if not plan.step_seconds:
        lines.append(f"no time: the speed of {plan.device_kind!r} is not known")
        return "\n".join(lines)
    if plan.estimate == "compiler":
        compute = (
            f"{plan.compiler_seconds * 1e3:.1f} ms by the compiler's estimate (roofline "
            f"{plan.roofline_seconds * 1e3:.1f} ms)"
        )
    else:
        compute = f"at least {plan.roofline_seconds * 1e3:.1f} ms (roofline; no estimate given)"
    lines += [
        f"step {plan.step_seconds * 1e3:.1f} ms: {compute} + "
        f"{plan.collective_seconds * 1e3:.1f} ms of collectives, not overlapped",
        f"{plan.sequences_per_second:,.0f} sequences/s, {plan.tokens_per_second:,.0f} tokens/s, "
        f"utilisation {plan.utilisation:.1%}",
        f"{plan.num_steps:,} steps: {plan.hours:,.1f} hours, {plan.chip_hours:,.0f} chip-hours",
    ]
    return "\n".join(lines)


NOTHING_FITS = "no single field makes it fit: try a smaller batch_size with remat and fsdp together"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def describe_sweep(tried: list[tuple[dict[str, Any], Plan]]) -> str:
    """One line a plan, fastest first."""
    lines = ["      step  utilisation      memory"]
    for change, plan in tried:
        if plan.step_seconds:
            speed = f"{plan.step_seconds * 1e3:7.1f} ms  {plan.utilisation:11.1%}"
        else:
            speed = f"{'-':>10}  {'-':>11}"
        fits = "" if plan.fits is not False else "  does not fit"
        lines.append(f"{speed}  {_gib(plan.memory_needed):>10}{fits}  {_as_flags(change)}")
    return "\n".join(lines)


def lengths_of(
    config: ml_collections.ConfigDict, max_seq_length: int, max_predictions_per_seq: int
) -> dict[str, int]:
    """Length and predictions: the flags', else the data set's, else as BERT was published."""
    if config.data_dir and not (max_seq_length and max_predictions_per_seq):
        arguments = records.Manifest.read(config.data_dir).arguments
        max_seq_length = max_seq_length or arguments["max_seq_length"]
        max_predictions_per_seq = max_predictions_per_seq or arguments["max_predictions_per_seq"]
    max_seq_length = max_seq_length or 128
    if max_seq_length > config.model.max_position_embeddings:
        raise UserError(
            f"--max_seq_length={max_seq_length} is beyond config.model.max_position_embeddings="
            f"{config.model.max_position_embeddings}: raise that, or shorten the sequences"
        )
    published = 20 if max_seq_length == 128 else int(0.15 * max_seq_length)
    predictions = max_predictions_per_seq or published
    return {"max_seq_length": max_seq_length, "max_predictions_per_seq": predictions}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--max_seq_length", type=int, default=0)
    parser.add_argument("--max_predictions_per_seq", type=int, default=0)
    parser.add_argument("--sweep", default="")
    parser.add_argument("--json", action="store_true")
    flags, rest = parser.parse_known_args(argv)
    config, _ = config_lib.parse(rest, USAGE)
    devices = open_devices(flags.topology)
    lengths = lengths_of(config, flags.max_seq_length, flags.max_predictions_per_seq)
    lengths["hardware_name"] = flags.topology
    tried = []
    if flags.sweep:
        tried = sweep(config, parse_grid(flags.sweep, config, len(devices)), devices, **lengths)
        change, plan = tried[0]
    else:
        LOG.info("compiling for %d devices; minutes, the first time", len(devices))
        plan = make_plan(config, devices, **lengths)
        if plan.fits is False:
            would_fit = what_would_fit(config, plan, devices, **lengths)
            plan = dataclasses.replace(plan, would_fit=would_fit)
    if flags.json:
        result = dataclasses.asdict(plan)
        if tried:
            result["tried"] = [{"change": c, **dataclasses.asdict(p)} for c, p in tried]
        print(json.dumps(result, indent=1))
        return
    if tried:
        print(describe_sweep(tried))
        print(f"\nbest: {_as_flags(change)}\n" if plan.fits is not False else "\nnone fits\n")
    print(describe(plan))


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
