"""Progress of a long stage: a bar on a terminal, one line at the end otherwise."""

import logging
import sys
import time

import tqdm

_log = logging.getLogger(__name__)


class Progress:
    """Shows a stage's share done, rates and ETA on stderr.

    With `Progress("tokenise", total=90e6)`: after `advance(3e6, documents=1500, megabytes=9.1)` the
    bar stands at 3 % and shows the documents/s and megabytes/s so far.
    """

    def __init__(self, stage: str, total: float):
        """`total` is in any unit that `advance` uses; 0 where it is not known."""
        self._stage, self._start = stage, time.monotonic()
        self._sums: dict[str, float] = {}
        self._bar = tqdm.tqdm(
            total=total or None,
            desc=stage,
            # Where INFO lines are not wanted, as in a program that calls this one, nor is a bar.
            disable=not sys.stderr.isatty() or not _log.isEnabledFor(logging.INFO),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            if total
            else "{desc}: {elapsed}{postfix}",
        )

    def advance(self, amount: float, **sums: float) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._bar.set_postfix_str(self._rates(), refresh=False)
        self._bar.update(amount)

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return ", ".join(
            f"{value / seconds:,.1f} {name}/s"
            if value < 100 * seconds
            else f"{value / seconds:,.0f} {name}/s"
            for name, value in self._sums.items()
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if exception[0] is None:
            totals = ", ".join(f"{value:,.0f} {name}" for name, value in self._sums.items())
            _log.info(
                f"{self._stage}: {totals} in {time.monotonic() - self._start:.1f} s "
                f"({self._rates()})"
            )
