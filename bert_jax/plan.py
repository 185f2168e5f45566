"""Command: what a config will take on given hardware, before any of it is booked.

The exact training step is compiled ahead of time for the topology, on any Linux machine; memory,
collectives and the compiler's estimate of the time are read from the result.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

import ml_collections

from bert_jax import config as config_lib
from bert_jax.cli import UserError, number
from bert_jax.cli import run as run_main
from bert_jax.planning import compiled, launch_file, lengths, sweep
from bert_jax.planning.report import Schedule
from bert_jax.training import phases

USAGE = """\
usage: python -m bert_jax.plan --config=configs/bert_base.py --topology=v5e:16x16 \\
         [--max_seq_length=128,512] [--sweep=batch_size,fsdp,remat] [--json] \\
         [--config.FIELD=VALUE …]
       python -m bert_jax.plan --launch=launch/bert_base_v5e.toml [--config.FIELD=VALUE …]

Compiles the config's training step for hardware that need not be there and prints memory, step
time, throughput and hours. TPU slices need the `tpu` extra (on Linux), not a TPU.

  --topology: a TPU slice, v4, v5e, v5p or v6e: v5e:16x16, v5p:8x8x8; by default this machine's
    devices.
  --launch: a launch file (docs/guides/launch.md): config, overrides, topology and slices.
  --max_seq_length, --max_predictions_per_seq: one number, or one per phase by commas. By default
    those of the phase's data_dir if it has one, else its max_seq_length, else 128 tokens, which
    the output names as assumed; and predictions for 15 % of them.
  --sweep: fields to try values of, from batch_size, accumulate_steps, data, fsdp, tensor, remat,
    dropout_rng, attention, scan_layers; values of your own after "=":
    --sweep=batch_size=8192:16384,remat. Prints what was tried and the fastest that fits.
  --price_per_chip_hour: what a chip costs an hour, for the price of the whole schedule.
  --json: one object, in bytes, seconds and hours: the first phase's numbers, hours, chip_hours and
    price of the whole schedule, `assumed`, the line on lengths that default or "", and `phases`,
    the numbers and the advice of each.
"""
LOG = logging.getLogger(__name__)


def run(
    config: ml_collections.ConfigDict,
    topology: str = "",
    *,
    num_slices: int = 1,
    max_seq_length: str = "",
    max_predictions_per_seq: str = "",
    swept: str = "",
    skip_unreachable: bool = False,
    price_per_chip_hour: float = 0.0,
) -> Schedule:
    """Plans of all phases of `config`; compiles, which takes minutes the first time.

    With a topology the process computes on the CPU from then on: JAX would otherwise take hold of
    the accelerators that are here.

    Args:
      topology: of a TPU slice, "v5e:16x16"; "" for this machine's devices.
      num_slices: slices of that topology.
      max_seq_length, max_predictions_per_seq: one number, or one per phase by commas; "" takes
        those of the data or the config.
      swept: fields to try values of, as --sweep has them; the plan of a phase is then the fastest.
      skip_unreachable: data sets that cannot be read from here say nothing, without an error.
      price_per_chip_hour: in any currency, for the price of the schedule; 0: not known.

    Raises:
      UserError: an unknown topology, or a config that cannot be run on it.
    """
    devices = compiled.open_devices(topology, num_slices)
    planned = phases.resolve(config)
    if skip_unreachable:
        lengths.skip_unreachable(planned)
    count = len(planned)
    given = lengths.one_per_phase("max_seq_length", max_seq_length, count)
    predictions = lengths.one_per_phase("max_predictions_per_seq", max_predictions_per_seq, count)
    assumed = lengths.describe_assumed(planned, given)
    sizes = [
        lengths.lengths_of(phase.config, *numbers)
        for phase, *numbers in zip(planned, given, predictions, strict=True)
    ]
    hardware_name = topology
    if num_slices > 1:
        hardware_name = f"{num_slices} slices of {topology}"
        LOG.info("what crosses between slices is timed as if they were one: the truth is slower")
    LOG.info("compiling for %d devices; minutes, the first time", len(devices))
    plans, tried = [], []
    for phase, size in zip(planned, sizes, strict=True):
        arguments: dict[str, Any] = {"devices": devices, **size, "hardware_name": hardware_name}
        if swept:
            grid = sweep.parse_grid(swept, len(devices))
            tried.append(sweep.sweep(phase, grid, **arguments))
            plans.append(tried[-1][0][1])
            continue
        plan = compiled.make_plan(phase, **arguments)
        if plan.fits is False:
            would_fit = sweep.what_would_fit(phase, plan, **arguments)
            plan = dataclasses.replace(plan, would_fit=would_fit)
        plans.append(plan)
    return Schedule(planned, tuple(plans), tuple(tried), assumed, price_per_chip_hour)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="")
    parser.add_argument("--launch", default="")
    parser.add_argument("--max_seq_length", default="")
    parser.add_argument("--max_predictions_per_seq", default="")
    parser.add_argument("--sweep", default="")
    parser.add_argument("--price_per_chip_hour", type=number, default=0.0)
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
    schedule = run(
        config,
        flags.topology,
        num_slices=num_slices,
        max_seq_length=flags.max_seq_length,
        max_predictions_per_seq=flags.max_predictions_per_seq,
        swept=flags.sweep,
        skip_unreachable=bool(flags.launch),
        price_per_chip_hour=flags.price_per_chip_hour,
    )
    print(json.dumps(schedule.to_json(), indent=1) if flags.json else schedule.to_text())


def cli() -> None:
    run_main(main)


if __name__ == "__main__":
    cli()
