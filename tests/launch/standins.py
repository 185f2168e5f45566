"""Stand-ins for gcloud, xpk, sbatch and the like: they record how they were called, and answer."""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ("gcloud", "kubectl", "xpk", "docker", "git", "sbatch", "srun", "scontrol", "squeue",
            "scancel", "tail")  # fmt: skip
SHA = "0123456789ab"

_PROGRAM = f"""#!{sys.executable} -SE
import json, os, pathlib, re, sys
home = pathlib.Path({{home!r}})
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
calls = home / "calls.jsonl"
with calls.open("a") as file:
    file.write(json.dumps(call) + "\\n")
rules = json.loads((home / "rules.json").read_text())
for number, (pattern, replies) in enumerate(rules):
    if re.search(pattern, " ".join(call), re.DOTALL):
        count = home / f"count{{{{number}}}}"
        turn = int(count.read_text()) if count.exists() else 0
        count.write_text(str(turn + 1))
        text, code = replies[min(turn, len(replies) - 1)]
        sys.stdout.write(text)
        sys.exit(code)
"""


class StandIns:
    """A directory of stand-ins, first on the PATH of the commands that `run` runs.

    `rules` are (pattern of a command line, replies (text, exit code) one after the other, the last
    again and again); the first pattern that fits counts, and without one the stand-in succeeds.
    """

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.environment: dict[str, str] = {}
        self.rules: list[tuple[str, list[tuple[str, int]]]] = [
            ("^git rev-parse", [(SHA + "\n", 0)]),
        ]
        (home / "bin").mkdir()
        (home / "tmp").mkdir()
        for program in PROGRAMS:
            path = home / "bin" / program
            path.write_text(_PROGRAM.format(home=str(home)).replace("{{", "{").replace("}}", "}"))
            path.chmod(0o755)

    def reply(self, pattern: str, *replies: tuple[str, int]) -> None:
        self.rules.insert(0, (pattern, list(replies)))

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Runs a command from the project's root with the stand-ins, from a clean slate."""
        for path in [*self.home.glob("count*"), self.home / "calls.jsonl"]:
            path.unlink(missing_ok=True)
        (self.home / "rules.json").write_text(json.dumps(self.rules))
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ
            | {
                "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
                "PYTHON": sys.executable,
                "TMPDIR": str(self.home / "tmp"),
                "POLL_SECONDS": "0",
            }
            | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, *programs: str) -> list[list[str]]:
        """The command lines so far, as words; of some programs, or of all but git."""
        path = self.home / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [c for c in calls if (c[0] in programs if programs else c[0] != "git")]


def verbs(calls: list[list[str]]) -> list[str]:
    """The calls of launch/tpu.sh in a word each: create, list, install, start, status, …"""
    words = []
    for call in calls:
        verb = call[4]
        if verb == "ssh":
            command = next(a for a in call if a.startswith("--command="))
            verb = re.search(r"worker\.sh (\w+)", command)[1]
        words.append(verb)
    return words


def write_toml(path: pathlib.Path, **keys) -> str:
    """Writes a launch file; JSON's literals are TOML's too, and a table comes inline."""

    def literal(value) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {literal(v)}" for k, v in value.items()) + "}"
        return json.dumps(value, ensure_ascii=False)

    path.write_text("".join(f"{key} = {literal(value)}\n" for key, value in keys.items()))
    return str(path)


def archive_in_place(standins) -> None:
    """The archive that the stand-in for git does not make: a worker.sh that does nothing."""
    source = standins.home / "source" / "launch"
    source.mkdir(parents=True)
    (source / "worker.sh").write_text("")
    archive = standins.home / "tmp" / f"bert_jax-{SHA}.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", source.parent, "."], check=True)
