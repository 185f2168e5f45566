"""Command: what a config will take on given hardware, before any of it is booked.

The exact training step is compiled ahead of time for the topology, on any Linux machine; memory,
collectives and the compiler's estimate of the time are read from the result.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from bert_jax import config as config_lib
from bert_jax.cli import UserError, run
from bert_jax.data import records
from bert_jax.planning import estimate, launch_file
from bert_jax.planning.estimate import Plan
from bert_jax.training import phases
from bert_jax.training.phases import Phase

USAGE = """\
usage: python -m bert_jax.plan --config=configs/bert_base.py --topology=v5e:16x16 \\
         [--max_seq_length=128,512] [--sweep=batch_size,fsdp,remat] [--json] \\
         [--config.FIELD=VALUE …]
       python -m bert_jax.plan --launch=launch/bert_base_v5e.toml [--config.FIELD=VALUE …]

Compiles the config's training step for hardware that need not be there and prints memory, step
time, throughput and hours. TPU slices need the `tpu` extra (on Linux), not a TPU.

  --topology: a TPU slice, v4, v5e, v5p or v6e: v5e:16x16, v5p:8x8x8; by default this machine's
    devices.
  --launch: a launch file (docs/launch.md), which says config, overrides, topology and slices.
  --max_seq_length, --max_predictions_per_seq: one number, or one a phase by commas. By default
    those of the phase's data_dir if it has one, else its max_seq_length, else 128 tokens, which
    the output names as assumed; and predictions for 15 % of them.
  --sweep: fields to try values of, from batch_size, accumulate_steps, data, fsdp, tensor, remat,
    dropout_rng, attention, scan_layers; values of your own after "=":
    --sweep=batch_size=8192:16384,remat. Prints what was tried and the fastest that fits.
  --json: one object, in bytes, seconds and hours: the first phase's figures, hours and chip_hours
    of the whole schedule, `assumed`, the line on lengths that are or "", and `phases`, the
    figures of each.
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
    "dropout_rng": "model.dropout_rng",
    "attention": "model.attention",
    "scan_layers": "model.scan_layers",
}


def what_would_fit(
    phase: Phase, plan: Plan, devices: Sequence[jax.Device], **lengths: Any
) -> list[str]:
    """Single fields that make `phase` fit, each compiled to be sure, as flags."""
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
        flags = _as_flags(phase, change)
        if any(flag.partition("=")[0] == flags.partition("=")[0] for flag in fitting):
            continue  # the smaller of two values was enough
        LOG.info("does not fit; trying %s", flags)
        changed = _plan_changed(phase, change, devices, **lengths)
        if changed and changed.fits:
            fitting.append(flags)
    return fitting


def _plan_changed(
    phase: Phase, change: dict[str, Any], devices: Sequence[jax.Device], **lengths: Any
) -> Plan | None:
    """The plan of `phase` with a change; None if its mesh or batch does not divide."""
    config = phase.config.copy_and_resolve_references()
    config.update_from_flattened_dict({SWEPT[name]: value for name, value in change.items()})
    try:
        return estimate.make_plan(dataclasses.replace(phase, config=config), devices, **lengths)
    except UserError as error:
        LOG.info("  left out: %s", error)
        return None


def _as_flags(phase: Phase, change: dict[str, Any]) -> str:
    return shlex.join(f"{phase.flag(SWEPT[name])}={value}" for name, value in change.items())


def sweep(
    phase: Phase,
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
        LOG.info("trying %s", _as_flags(phase, change))
        if plan := _plan_changed(phase, change, devices, **lengths):
            tried.append((change, plan))
    if not tried:
        raise UserError(f"no combination of {', '.join(grid)} divides over {len(devices)} devices")
    return sorted(
        tried, key=lambda pair: (pair[1].fits is False, -(pair[1].sequences_per_second or 0))
    )


def parse_grid(text: str, devices: int) -> dict[str, list[Any]]:
    """'batch_size,fsdp=1:16' -> {'batch_size': [...], 'fsdp': [1, 16]}, remat last."""
    defaults: dict[str, list[Any]] = {
        "batch_size": [devices * n for n in (32, 64, 128, 256)],
        "accumulate_steps": [1, 2, 4],
        "data": [-1],
        "fsdp": [n for n in (1, 16) if devices % n == 0],
        "tensor": [n for n in (1, 2, 4) if devices % n == 0],
        "remat": ["none", "dots", "full"],
        "dropout_rng": ["threefry", "hash"],
        "attention": ["auto", "xla"],
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
    if "remat" in grid:
        if unknown := [value for value in grid["remat"] if value not in defaults["remat"]]:
            known = ", ".join(defaults["remat"])
            raise UserError(f"--sweep: remat cannot be {unknown[0]!r}: expected one of {known}")
        grid["remat"].sort(key=defaults["remat"].index)
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
        if plan.kernel_seconds:
            compute += f", {plan.kernel_seconds * 1e3:.1f} ms of it kernels by our own count"
    else:
        compute = f"at least {plan.roofline_seconds * 1e3:.1f} ms (roofline; no estimate given)"
    lines += [
        f"step {plan.step_seconds * 1e3:.1f} ms: {compute} + "
        f"{plan.collective_seconds * 1e3:.1f} ms of collectives that nothing runs beside "
        f"({plan.hidden_collective_seconds * 1e3:.1f} ms are asynchronous)",
        f"{plan.sequences_per_second:,.0f} sequences/s, {plan.tokens_per_second:,.0f} tokens/s, "
        f"utilisation {plan.utilisation:.1%}",
        f"{plan.num_steps:,} steps: {plan.hours:,.1f} hours, {plan.chip_hours:,.0f} chip-hours",
    ]
    return "\n".join(lines)


NOTHING_FITS = "no single field makes it fit: try a smaller batch_size with remat and fsdp together"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def describe_sweep(phase: Phase, tried: list[tuple[dict[str, Any], Plan]]) -> str:
    """One line a plan, fastest first, and which is the best."""
    lines = ["      step  utilisation      memory"]
    for change, plan in tried:
        if plan.step_seconds:
            speed = f"{plan.step_seconds * 1e3:7.1f} ms  {plan.utilisation:11.1%}"
        else:
            speed = f"{'-':>10}  {'-':>11}"
        fits = "" if plan.fits is not False else "  does not fit"
        flags = _as_flags(phase, change)
        lines.append(f"{speed}  {_gib(plan.memory_needed):>10}{fits}  {flags}")
    change, plan = tried[0]
    if plan.fits is False:
        verdict = "none fits"
    elif plan.step_seconds:
        verdict = f"best: {_as_flags(phase, change)}"
    else:
        verdict = f"no speed of {plan.device_kind!r} is known, so none of them is the best"
    return "\n".join([*lines, "", verdict])


def _reachable(data_dir: str) -> bool:
    """Whether the data set is there and can be read from this machine."""
    try:
        return (epath.Path(data_dir) / records.MANIFEST).exists()
    except Exception as error:  # no package for gs://, no network, no permission
        LOG.debug("%s: %s", data_dir, error)
        return False


def _leave_out_unreachable(planned: Sequence[Phase]) -> None:
    """Empties the phases' data_dir where it cannot be read from this machine."""
    for data_dir in dict.fromkeys(phase.config.data_dir for phase in planned):
        if _reachable(data_dir):
            continue
        LOG.info("%s cannot be read from here: it does not say the lengths", data_dir)
        for phase in planned:
            if phase.config.data_dir == data_dir:
                phase.config.data_dir = ""


def one_a_phase(flag: str, text: str, count: int) -> list[int]:
    """'128,512' -> [128, 512]; one number is that of all `count` phases, '' is 0."""
    if text and not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--{flag}={text}: expected a number, or one a phase: --{flag}=128,512")
    values = [int(value) for value in (text or "0").split(",")]
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise UserError(
            f"--{flag}={text} has {len(values)} numbers, but the run has {count} phase(s): "
            "expected one number for all, or one a phase"
        )
    return values


def describe_assumed(planned: Sequence[Phase], max_seq_lengths: Sequence[int]) -> str:
    """A line on the phases whose length no flag, data or field says; "" if there are none."""
    assumed = [
        f"phase {number}"
        for number, (phase, given) in enumerate(zip(planned, max_seq_lengths, strict=True), 1)
        if not (given or phase.config.data_dir or phase.config.get("max_seq_length", 0))
    ]
    if not assumed:
        return ""
    flag = "--max_seq_length=" + ",".join(["LENGTH"] * len(planned))
    field = "max_seq_length in config.phases" if planned[0].config.phases else "config.data_dir"
    return (
        f"assumed: {estimate.ASSUMED_LENGTH} tokens a sequence in {' and '.join(assumed)}, as no "
        f"data says the length; set it by {flag} or {field}"
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--launch", default="")
    parser.add_argument("--max_seq_length", default="")
    parser.add_argument("--max_predictions_per_seq", default="")
    parser.add_argument("--sweep", default="")
    parser.add_argument("--json", action="store_true")
    flags, rest = parser.parse_known_args(argv)
    num_slices = 1
    if flags.launch:
        launch = launch_file.read(flags.launch)
        if not launch.config:
            raise UserError(f"{flags.launch} launches {launch.target}, which trains nothing")
        flags.topology = flags.topology or launch.topology
        num_slices = launch.num_slices
        rest = [*launch.config_flags, *rest]
    config, _ = config_lib.parse(rest, USAGE)
    devices = estimate.open_devices(flags.topology, num_slices)
    planned = phases.resolve(config)
    if flags.launch:
        _leave_out_unreachable(planned)
    names = ("max_seq_length", "max_predictions_per_seq")
    given = [one_a_phase(name, getattr(flags, name), len(planned)) for name in names]
    assumed = describe_assumed(planned, given[0])
    lengths = [
        estimate.lengths_of(phase.config, *numbers)
        for phase, *numbers in zip(planned, *given, strict=True)
    ]
    hardware_name = flags.topology
    if num_slices > 1:
        hardware_name = f"{num_slices} slices of {flags.topology}"
        LOG.info("what crosses between slices is timed as if they were one: the truth is slower")
    LOG.info("compiling for %d devices; minutes, the first time", len(devices))
    plans, results, text = [], [], ""
    for number, phase in enumerate(planned):
        arguments = {"devices": devices, **lengths[number], "hardware_name": hardware_name}
        tried = []
        if flags.sweep:
            tried = sweep(phase, parse_grid(flags.sweep, len(devices)), **arguments)
            _, plan = tried[0]
            text += f"{describe_sweep(phase, tried)}\n\n"
        else:
            plan = estimate.make_plan(phase, **arguments)
            if plan.fits is False:
                would_fit = what_would_fit(phase, plan, **arguments)
                plan = dataclasses.replace(plan, would_fit=would_fit)
        plans.append(plan)
        results.append(dataclasses.asdict(plan))
        if tried:
            results[-1]["tried"] = [{"change": c, **dataclasses.asdict(p)} for c, p in tried]
        text += f"phase {number + 1}: {describe(plan)}\n\n"
    hours = sum(plan.hours for plan in plans) if all(plan.hours for plan in plans) else None
    chip_hours = hours and hours * plans[0].chips
    if flags.json:
        # The first phase's figures, and the hours of all.
        total = {"hours": hours, "chip_hours": chip_hours, "assumed": assumed, "phases": results}
        print(json.dumps(results[0] | total, indent=1))
        return
    if hours:
        text += f"whole schedule: {hours:,.1f} hours, {chip_hours:,.0f} chip-hours\n"
    text += assumed
    print(text.rstrip())


def cli() -> None:
    run(main)


if __name__ == "__main__":
    cli()
