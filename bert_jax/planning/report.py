"""Plans as text for people and as JSON for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from bert_jax.planning.compiled import Plan
from bert_jax.planning.sweep import as_flags
from bert_jax.training.phases import Phase

# What is too little work for a device, or too much talk: MFU, and share of the step.
LOW_MFU, MUCH_COMMUNICATION = 0.3, 0.25
NOTHING_FITS = "no single field makes it fit: try a smaller batch_size with remat and fsdp together"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The plans of a run's phases.

    Attributes:
      tried: of a sweep, for each phase all that was tried, fastest first; else empty.
      assumed: a line on the lengths that default, or "".
      price_per_chip_hour: in any currency; 0: not known.
    """

    phases: tuple[Phase, ...]
    plans: tuple[Plan, ...]
    tried: tuple[Sequence[tuple[dict[str, Any], Plan]], ...]
    assumed: str
    price_per_chip_hour: float = 0.0

    @property
    def hours(self) -> float | None:
        """Of all phases; None if a phase's are not known."""
        hours = [plan.hours for plan in self.plans if plan.hours]
        return sum(hours) if len(hours) == len(self.plans) else None

    @property
    def chip_hours(self) -> float | None:
        return self.hours and self.hours * self.plans[0].chips

    @property
    def price(self) -> float | None:
        """Of all phases; None if it is not known."""
        return (self.chip_hours or 0) * self.price_per_chip_hour or None

    def to_json(self) -> dict[str, Any]:
        """The first phase's numbers, the hours of all, and the numbers of each phase."""
        results = [dataclasses.asdict(plan) for plan in self.plans]
        for result, tried in zip(results, self.tried, strict=False):
            result["tried"] = [{"change": c, **dataclasses.asdict(p)} for c, p in tried]
        for result, plan in zip(results, self.plans, strict=True):
            result["advice"] = judge(plan)
        total = {"hours": self.hours, "chip_hours": self.chip_hours, "assumed": self.assumed}
        return results[0] | total | {"price": self.price, "phases": results}

    def to_text(self) -> str:
        text = ""
        for number, (phase, plan) in enumerate(zip(self.phases, self.plans, strict=True)):
            if self.tried:
                text += f"{describe_sweep(phase, self.tried[number])}\n\n"
            text += f"phase {number + 1}: {describe(plan)}\n\n"
        if self.hours:
            text += f"whole schedule: {self.hours:,.1f} hours, {self.chip_hours:,.0f} chip-hours"
            if self.price:
                text += f", price {self.price:,.0f} at {self.price_per_chip_hour:g} per chip-hour"
            text += "\n"
        return (text + self.assumed).rstrip()


def judge(plan: Plan) -> list[str]:
    """What keeps a plan that fits from being a good one, and what to try, a line each."""
    if plan.fits is False or not plan.step_seconds:
        return []
    advice = []
    sequences = plan.settings["batch_size"] / (plan.mesh["data"] * plan.mesh["fsdp"])
    sequences /= plan.settings["accumulate_steps"]
    mfu = plan.model_flops_utilization or 0.0
    share = (plan.collective_seconds or 0.0) / plan.step_seconds
    if mfu < LOW_MFU:
        advice.append(
            f"{sequences:g} sequences per device and microbatch, MFU {mfu:.0%}: too little work, "
            "try --sweep=batch_size"
        )
    if share > MUCH_COMMUNICATION:
        advice.append(
            f"exposed communication is {share:.0%} of the step: try --sweep=batch_size,fsdp"
        )
    return advice


def describe(plan: Plan) -> str:
    """The plan as text for people."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items())
    devices = "" if plan.devices == plan.chips else f", {plan.devices} devices"
    lines = [
        f"{plan.hardware}: {plan.chips} chips{devices}, {plan.hosts} hosts",
        f"mesh {mesh}; {settings}",
        f"{plan.max_seq_length} tokens and {plan.max_predictions_per_seq} predictions per sequence",
        "",
        "memory per device",
        *(f"  {_gib(size):>11}  {kind}" for kind, size in plan.memory.items()),
    ]
    if plan.memory_available:
        verdict = {True: "fits", False: "DOES NOT FIT", None: ""}[plan.fits]
        total = f"  {_gib(plan.memory_needed):>11}  of {_gib(plan.memory_available)}: {verdict}"
    else:
        total = f"  {_gib(plan.memory_needed):>11}  in all; this device's memory is not known"
    lines += [total, plan.state.describe()]
    if plan.fits is False:
        lines += ["", "each of these alone makes it fit:" if plan.would_fit else NOTHING_FITS]
        lines += [f"  {flags}" for flags in plan.would_fit]
        return "\n".join(lines)
    lines += ["", "collectives per step (bytes that a device sends)"]
    for kind, numbers in (plan.collectives or {}).items():
        lines.append(f"  {numbers['bytes'] / 1e6:8.1f} MB  {numbers['count']} × {kind}")
    if not plan.collectives:
        lines.append("  none")
    lines += [
        "",
        f"FLOPs per device and step: {plan.model_flops:.3e} of the model, "
        f"{plan.flops or 0:.3e} in the program; "
        f"{(plan.hbm_bytes or 0) / 1e9:.1f} GB from and to memory",
    ]
    if not plan.step_seconds:
        lines.append(f"no time: the speed of {plan.device_kind!r} is not known")
        return "\n".join(lines)
    if plan.estimate == "compiler":
        compute = (
            f"{_ms(plan.compiler_seconds)} by the compiler's estimate (roofline "
            f"{_ms(plan.roofline_seconds)})"
        )
        if plan.kernel_seconds:
            compute += f", {_ms(plan.kernel_seconds)} of it kernels by our own count"
        if plan.uncounted_operations:
            compute += (
                f", and {plan.uncounted_operations} operations that it does not estimate, at least "
                f"{_ms(plan.uncounted_seconds)} by their bytes"
            )
    else:
        compute = f"at least {_ms(plan.roofline_seconds)} (roofline; no estimate given)"
    lines += [
        f"step {_ms(plan.step_seconds)}: {compute} + "
        f"{_ms(plan.collective_seconds)} of exposed communication "
        f"({_ms(plan.hidden_collective_seconds)} overlap)",
        f"{plan.sequences_per_second or 0:,.0f} sequences/s, "
        f"{plan.tokens_per_second or 0:,.0f} tokens/s, MFU {plan.model_flops_utilization or 0:.1%}",
        f"{plan.num_steps:,} steps: {plan.hours or 0:,.1f} hours, "
        f"{plan.chip_hours or 0:,.0f} chip-hours",
        *(f"advice: {line}" for line in judge(plan)),
    ]
    return "\n".join(lines)


def describe_sweep(phase: Phase, tried: Sequence[tuple[dict[str, Any], Plan]]) -> str:
    """One line a plan, fastest first, and which is the best."""
    lines = ["      step     MFU      memory"]
    for change, plan in tried:
        if plan.step_seconds:
            speed = f"{plan.step_seconds * 1e3:7.1f} ms  {plan.model_flops_utilization:6.1%}"
        else:
            speed = f"{'-':>10}  {'-':>6}"
        fits = "" if plan.fits is not False else "  does not fit"
        flags = as_flags(phase, change)
        lines.append(f"{speed}  {_gib(plan.memory_needed):>10}{fits}  {flags}")
    change, plan = tried[0]
    if plan.fits is False:
        verdict = "none fits"
    elif plan.step_seconds:
        verdict = f"best: {as_flags(phase, change)}"
    else:
        verdict = f"no speed of {plan.device_kind!r} is known, so none of them is the best"
    return "\n".join([*lines, "", verdict])


def _ms(seconds: float | None) -> str:
    return f"{(seconds or 0) * 1e3:.1f} ms"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
