"""Weak scaling by plan: the same batch a device on ever more chips.

    python benchmarks/scaling.py --config=configs/bert_base.py --plot=docs/pictures/scaling.png

Compiles the config's training step for each slice (minutes each, the first time) and prints step
time, bytes of collectives and efficiency: the first slice's step time over this one's. Any
--config.FIELD=VALUE applies to all of them.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from bert_jax import config as config_lib
from bert_jax.cli import UserError, run
from bert_jax.planning import compiled, lengths
from bert_jax.training import phases


def draw(plans: Sequence[compiled.Plan], title: str, path: str) -> None:
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'bert_jax[plot]'") from None
    figure, (times, speed) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    chips = [p.chips for p in plans]
    compute = [(p.step_seconds - p.collective_seconds) * 1e3 for p in plans]
    collective = [p.collective_seconds * 1e3 for p in plans]
    names = [p.hardware for p in plans]
    times.bar(names, compute, label="computation")
    times.bar(names, collective, bottom=compute, label="collectives, not overlapped")
    times.set(ylabel="ms per step", title=title)
    times.legend(loc="lower right")
    speed.plot(chips, [p.sequences_per_second for p in plans], "o-", label="planned")
    first = plans[0].sequences_per_second / chips[0]
    speed.plot(chips, [first * count for count in chips], ":", label="linear from the first")
    speed.set(xlabel="chips", ylabel="sequences/s", xscale="log", yscale="log", title="throughput")
    speed.set_xticks(chips, names)
    speed.set_xticks([], minor=True)
    speed.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    slices = "v5e:4x4,v5e:4x8,v5e:8x8,v5e:8x16,v5e:16x16"
    parser.add_argument("--topologies", default=slices)
    parser.add_argument("--batch_per_chip", type=int, default=64)
    parser.add_argument("--max_seq_length", type=int, default=0)
    parser.add_argument("--plot", default="", help="file to draw to, e.g. scaling.png")
    flags, rest = parser.parse_known_args(argv)
    config = config_lib.parse(rest, __doc__)[0]
    sizes = lengths.lengths_of(config, flags.max_seq_length)
    plans: list[compiled.Plan] = []
    print("| slice | chips | step, ms | of it collectives | sent a device, MB | efficiency |")
    print("|---|---|---|---|---|---|")
    for topology in flags.topologies.split(","):
        devices = compiled.open_devices(topology)
        config.batch_size = flags.batch_per_chip * len(devices)
        phase = phases.resolve(config)[0]
        result = compiled.make_plan(phase, devices, **sizes, hardware_name=topology)
        if not result.step_seconds:
            raise UserError(f"batch_per_chip={flags.batch_per_chip} does not fit {topology}")
        plans.append(result)
        sent = sum(kind["bytes"] for kind in result.collectives.values())
        efficiency = plans[0].step_seconds / result.step_seconds
        print(
            f"| {topology} | {result.chips} | {result.step_seconds * 1e3:.1f} | "
            f"{result.collective_seconds * 1e3:.1f} | {sent / 1e6:.0f} | {efficiency:.1%} |",
            flush=True,
        )
    if flags.plot:
        name = pathlib.Path(next(a for a in argv if a.startswith("--config=")).partition("=")[2])
        draw(plans, f"{name.stem}, {flags.batch_per_chip} sequences per chip", flags.plot)


if __name__ == "__main__":
    run(main)
