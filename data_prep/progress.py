"""Progress of a long stage: a bar on a terminal, else a line now and then; one line at the end."""

import logging
import time

from bert_jax import screen

_log = logging.getLogger(__name__)


class Progress(screen.Stage):
    """Shows a stage's share done, the time left, and rates on stderr.

    With `Progress("tokenise", total=90e6)`: after `advance(3e6, documents=1500, MB=9.1)` the bar
    stands at 3 % and shows the documents/s and MB/s so far.
    """

    def __init__(self, stage: str, total: float):
        """`total` is in any unit that `advance` uses; 0 where it is not known."""
        # Where INFO lines are not wanted, as in a program that calls this one, nor is a bar.
        super().__init__(stage, total, _log.isEnabledFor(logging.INFO))
        self._stage, self._start, self._done = stage, time.monotonic(), 0.0
        self._sums: dict[str, float] = {}

    def advance(self, amount: float, **sums: float) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._done += amount
        self.update(self._done, [screen.ETA, *self._rates()])

    def _rates(self) -> list[str]:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return [f"{screen.number(value / seconds)} {name}/s" for name, value in self._sums.items()]

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        if exception[0] is None:
            totals = ", ".join(f"{value:,.0f} {name}" for name, value in self._sums.items())
            _log.info(
                f"{self._stage}: {totals} in {time.monotonic() - self._start:.1f} s "
                f"({', '.join(self._rates())})"
            )
