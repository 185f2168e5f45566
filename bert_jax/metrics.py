"""Command: prints the last metrics of runs, or draws their curves together."""

import argparse
from collections.abc import Sequence

from bert_jax import cli as cli_lib


def run(workdir: str) -> dict[str, float | None]:
    """The last value of each metric of a run, training and evaluation; None where not finite.

    Raises:
      UserError: WORKDIR has no metrics.
    """
    from bert_jax.runs import curves

    return {name: value for line in curves.lines_of_run(workdir) for name, value in line.items()}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.metrics",
        description="Prints the last metrics of runs, or draws their curves together.",
        formatter_class=cli_lib.HelpFormatter,
    )
    parser.add_argument(
        "workdirs", nargs="+", metavar="WORKDIR", help="of a pretraining or fine-tuning"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the curves into this file")
    parser.add_argument(
        "--window", type=cli_lib.at_least(1), default=10, help="logged steps to smooth over"
    )
    options = parser.parse_args(argv)
    if options.plot:
        from bert_jax.runs import curves  # after parsing: JAX takes seconds to import

        titles = curves.plot(options.workdirs, options.plot, options.window)
        print("\n  ".join([f"wrote {options.plot}", *titles]))
        return
    for workdir in options.workdirs:
        last = run(workdir)
        width = max(map(len, last))
        print(workdir)
        for name, value in last.items():
            print(f"  {name:<{width}}  {value:.6g}" if value is not None else f"  {name}  none")


def cli() -> None:
    cli_lib.run(main)


if __name__ == "__main__":
    cli()
