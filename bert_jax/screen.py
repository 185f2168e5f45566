"""What every command shows on standard error while it works.

On a terminal a live line, rewritten in place, and lines that stay; elsewhere plain lines.
"""

import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import tqdm

# A field of a live line: the time left where it is known, else the time gone.
ETA = "ETA"
# A live line stays, as a record, after a minute; later each time that a twentieth has been added.
KEEP_SECONDS, KEEP_SHARE = 60.0, 0.05
_LEAST_BAR = 14  # columns for the share done, the bar and its frame
_LEAST_SECONDS = 0.1  # between two drawings


def number(value: float) -> str:
    """A metric in four digits or more, without an exponent where it needs none.

    number(1306.72) -> "1,307"; number(3.14159) -> "3.142"; number(5e-5) -> "5.00e-05"
    """
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """3725.4 -> '1:02:05'."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def fitting(fields: Sequence[str], width: int) -> str:
    """The first of `fields`, which come in the order of their importance, that fit a width.

    fitting(["step 5/9", "loss 3.1", "ETA 0:01:00"], 20) -> "step 5/9  loss 3.1"
    """
    text = ""
    for field in fields:
        longer = f"{text}  {field}" if text else field
        if len(longer) > width:
            break
        text = longer
    return text


def facts(rows: Mapping[str, str]) -> str:
    """What a run begins or ends with: a line a fact, as wide as the terminal.

    facts({"data": "10 examples", "mesh": "data 1"}) -> "  data     10 examples\\n  mesh     data 1"
    """
    return "\n".join(_wrapped(f"  {name:<8} ", text) for name, text in rows.items())


def say(text: str) -> None:
    """Prints lines that stay, above the live line if there is one."""
    lines = (line if line.startswith("  ") else _wrapped("", line) for line in text.split("\n"))
    tqdm.tqdm.write("\n".join(lines), file=sys.stderr)
    sys.stderr.flush()


def _wrapped(start: str, text: str) -> str:
    """A line, on a terminal continued below where it is too long; paths stay whole."""
    width = _width()
    if not width:
        return start + text
    rest = " " * (len(start) or 4)
    keep: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    # What the line begins with may have blanks that count.
    filled = textwrap.fill(
        "\0" * len(start) + text, width, subsequent_indent=rest, drop_whitespace=True, **keep
    )
    return start + filled.lstrip("\0")


def _width() -> int:
    """Columns of the terminal, without the last one; 0 where there is none."""
    if not sys.stderr.isatty():
        return 0
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns - 1
    except OSError:
        return 79


class _Bar(tqdm.tqdm):
    """tqdm's bar, which takes the columns that the text behind it leaves."""

    text: Callable[[int], str] = staticmethod(lambda width: "")

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        room = (values["ncols"] or 80) - len(self.desc) - _LEAST_BAR
        return values | {"text": self.text(room)}


class Stage:
    """A stage of a command that takes long: its live line, and what stays of it.

        with Stage("compiling", total=16) as stage:
            stage.update(1, ["1 of 16 programs", ETA])

    Args:
      name: what is done; "" where the fields say it.
      total: of what `update` counts; 0: not known.
      show: False shows nothing at all.
      every: without a terminal each update is a line, not one now and then.
    """

    def __init__(self, name: str, total: float = 0, show: bool = True, every: bool = False):
        self._name, self._total, self._show = name, total, show
        self._begun = self._kept = self._drawn = time.monotonic()
        self._first: tuple[float, float] | None = None  # what was done when, at the first update
        self._last, self._fields = (0.0, self._begun), [ETA]
        self._bar: _Bar | None = None
        self._every = every
        self._ended = threading.Event()
        if show and sys.stderr.isatty():
            line = "{desc}{percentage:3.0f}% |{bar}| {text}" if total else "{desc}{text}"
            self._bar = _Bar(
                total=total or None,
                desc=f"{name}  " if name else "",
                leave=False,
                dynamic_ncols=True,
                bar_format=line,
            )
            self._bar.text = lambda width: fitting(self._texts(), width)
            # The clock runs while a program compiles.
            self._ticking = threading.Thread(target=self._tick, daemon=True)
            self._ticking.start()

    def update(self, done: float, fields: Sequence[str]) -> None:
        """Shows what is done in all, and fields in the order of their importance."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        self._last, self._fields = (done, now), list(fields)
        is_due = now - self._kept >= max(KEEP_SECONDS, KEEP_SHARE * (now - self._begun))
        if self._show and (is_due or (self._every and self._bar is None)):
            self._kept = now
            fields = [*filter(None, [self._name]), *self._texts()]
            say(fitting(fields, _width()) if self._bar is not None else "  ".join(fields))
        if self._bar is not None:
            self._bar.n = min(done, self._total or done)
            if now - self._drawn >= _LEAST_SECONDS:
                self._drawn = now
                self._bar.refresh()

    def close(self) -> None:
        """Takes the live line away."""
        if self._bar is not None:  # one without a total has no truth value
            self._ended.set()
            self._ticking.join()
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _tick(self) -> None:
        while self._bar is not None and not self._ended.wait(1.0):
            self._bar.refresh()

    def _texts(self) -> list[str]:
        left = self._left()
        now = time.monotonic()
        time_field = duration(now - self._begun) if left is None else f"ETA {duration(left)}"
        return [time_field if field == ETA else field for field in self._fields]

    def _left(self) -> float | None:
        """Seconds to the end, at the mean speed since the first update; None: not known."""
        done, then = self._last
        if not self._total or not self._first or done <= self._first[0]:
            return None
        seconds = (then - self._first[1]) / (done - self._first[0]) * (self._total - done)
        return seconds - (time.monotonic() - then)
