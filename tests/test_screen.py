"""What commands show: on terminals of several widths, and where there is none."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from small_run import ROOT

from bert_jax import screen

SCRIPT = """
import logging, time
from bert_jax import cli, screen

def main(argv):
    with screen.Stage("", 10_000, every=True) as stage:
        for step in (1_000, 1_010):
            time.sleep(0.15)
            fields = [f"step {step:,}/10,000", "loss 6.321", screen.ETA, "1,307 sequences/s"]
            stage.update(step, [*fields, "mlm_loss 5.630", "nsp_loss 0.6910"])
        with screen.Stage("compiling"):  # which has no total
            time.sleep(1.2)
        logging.warning("evaluated")
        words = "words " * 30
        screen.say(screen.facts({"data": f"in a/long-path/{'x' * 50} {words}"}))
        screen.say(words)

cli.run(main)
"""


def on_terminal(columns: int) -> list[str]:
    """The lines that were on a terminal of that width, each as it was drawn."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, stdout=side, stderr=side, cwd=ROOT) as process:
        os.close(side)
        written = b""
        while True:
            try:
                written += os.read(main, 4096)
            except OSError:  # the other side is closed
                break
    os.close(main)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[\d*[A-Z]", "", written.decode())  # movements of the cursor
    return [line for line in re.split(r"[\r\n]", text) if line.strip()]


@pytest.mark.parametrize(("columns", "last"), [(80, "sequences/s"), (120, "nsp_loss 0.6910")])
def test_a_terminal_shows_what_counts_most_and_no_line_is_cut(columns, last):
    lines = on_terminal(columns)
    assert "evaluated" in lines  # stays, on a line of its own
    line = next(line for line in lines if "1,010" in line)
    assert "step 1,010/10,000  loss 6.321  ETA 0:" in line and line.endswith(last)
    assert any(line.startswith("compiling  0:00:01") for line in lines)  # time goes on
    assert max(map(len, lines)) <= columns
    first = next(i for i, line in enumerate(lines) if line.startswith("  data"))
    assert lines[first].startswith("  data     in ") and lines[first + 1].startswith(" " * 11)
    assert f"a/long-path/{'x' * 50}" in lines[first] + lines[first + 1]  # whole


def test_without_a_terminal_each_update_is_a_line():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    first, second, third, fact, words = result.stderr.splitlines()
    assert first.startswith("step 1,000/10,000  loss 6.321  0:00:00  1,307 sequences/s  mlm_loss")
    assert "  ETA 0:0" in second and second.endswith("nsp_loss 0.6910")
    assert third == "evaluated"
    assert fact.startswith("  data     in a/long-path/x") and len(words) > 120  # for grep


def test_a_long_stage_leaves_a_line_now_and_then(capsys, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(screen.time, "monotonic", lambda: clock["now"])
    with screen.Stage("tokenise", 100) as stage:
        for clock["now"] in range(0, 130, 10):
            stage.update(clock["now"] / 2, [f"{clock['now']} s", screen.ETA])
    assert capsys.readouterr().err.splitlines() == [
        "tokenise  60 s  ETA 0:02:20",
        "tokenise  120 s  ETA 0:01:20",
    ]


def test_nothing_is_shown_unless_asked_for(capsys):
    with screen.Stage("compiling", 2, show=False, every=True) as stage:
        stage.update(1, ["1 of 2"])
    assert capsys.readouterr() == ("", "")


def test_fields_come_by_importance():
    fields = ["step 5/9", "loss 3.1", "ETA 0:01:00"]
    assert screen.fitting(fields, 18) == "step 5/9  loss 3.1"
    assert screen.fitting(fields, 17) == "step 5/9"
    assert screen.fitting(fields, 3) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (3.14159, "3.142"),
        (3.0, "3.000"),
        (812.34, "812.3"),
        (1306.72, "1,307"),
        (1234567.8, "1,234,568"),
        (5e-5, "5.00e-05"),
        (0.0315, "0.03150"),
    ],
)
def test_numbers_have_four_digits_or_more(value, text):
    assert screen.number(value) == text


def test_durations():
    assert screen.duration(3725.4) == "1:02:05"
    assert screen.duration(-1) == "0:00:00"
