"""Values of fields tried one after another: which are fastest, and which make a step fit."""

import dataclasses
import itertools
import logging
import math
import shlex
from collections.abc import Sequence
from typing import Any

import jax

from bert_jax.cli import UserError
from bert_jax.planning import compiled
from bert_jax.planning.compiled import Plan
from bert_jax.training.phases import Phase

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
    if plan.memory_available is None:
        return []
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
    fitting: list[str] = []
    for change in changes:
        flags = as_flags(phase, change)
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
        return compiled.make_plan(dataclasses.replace(phase, config=config), devices, **lengths)
    except UserError as error:
        LOG.info("  skipped: %s", error)
        return None


def as_flags(phase: Phase, change: dict[str, Any]) -> str:
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
        LOG.info("trying %s", as_flags(phase, change))
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
