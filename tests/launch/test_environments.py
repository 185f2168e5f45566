"""Environments: every extra can be installed with its constraints; a Python has its own."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

import pytest
from standins import ROOT

BEAM = ("beam", "dataflow")  # their constraints are others


def extras() -> list[str]:
    """The names of setup.py's extras."""
    setup = ast.parse((ROOT / "setup.py").read_text())
    tables = (n.value for n in ast.walk(setup) if getattr(n, "arg", "") == "extras_require")
    return [key.value for key in next(tables).keys]


def constraints(extra: str) -> pathlib.Path:
    return ROOT / ("constraints-beam.txt" if extra in BEAM else "constraints.txt")


@pytest.fixture(scope="module")
def pip(tmp_path_factory) -> str:
    """pip alone, so that nothing counts as there already; its newest, which reads less."""
    directory = tmp_path_factory.mktemp("pip")
    venv.create(directory, with_pip=True)
    program = str(directory / "bin" / "pip")
    subprocess.run([program, "install", "--quiet", "--upgrade", "pip"], check=True, timeout=300)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("extra", extras())
def test_an_extra_can_be_resolved_with_its_constraints(pip, extra):
    result = subprocess.run(
        [pip, "install", "--dry-run", "--quiet", "-c", constraints(extra), "-e", f".[{extra}]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-beam.txt"])
def test_one_version_of_a_package_for_each_python(name):
    versions = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            package, marker = re.fullmatch(r"([A-Za-z0-9._-]+)==\S+?(?:; (.*))?", line).groups()
            versions.setdefault(package, []).append(marker)
    for package, markers in versions.items():
        below = [re.sub(" (<|>=) ", " < ", m) for m in markers if m]
        expected = [None] if len(markers) == 1 else [f'python_version < "{below[0][-5:-1]}"'] * 2
        assert [m and re.sub(" (<|>=) ", " < ", m) for m in markers] == expected, package
        assert len(set(markers)) == len(markers), package
    for key in ("jax", "jaxlib", "flax"):
        assert len(versions[key]) == 2  # the last of Python 3.11, and newer ones


@pytest.mark.parametrize(
    ("there", "asked", "taken"),
    [
        ("", "", ".venv"),
        ("", "3.13", ".venv"),
        ("3.11", "", ".venv"),
        ("3.11", "3.11", ".venv"),
        ("3.11", "3.13", ".venv-3.13"),
    ],
)
def test_another_python_has_an_environment_of_its_own(tmp_path, there, asked, taken):
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def python(path: pathlib.Path, version: str) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)
        return str(path)

    if there:
        python(tmp_path / ".venv" / "bin" / "python", there)
    command = ["make", "--dry-run", "test"]
    if asked:
        command.append(f"PYTHON={python(tmp_path / 'python', asked)}")
    # What an outer `make PYTHON=…` that runs the tests hands down is not asked for here.
    passed_on = ("PYTHON", "MAKEFLAGS", "MAKEOVERRIDES")
    environment = {name: value for name, value in os.environ.items() if name not in passed_on}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert f"\n{taken}/bin/python -m pytest" in result.stdout


def test_this_python_is_one_that_the_constraints_are_for():
    assert (
        f"{sys.version_info.major}.{sys.version_info.minor}"
        in ((ROOT / "constraints.txt").read_text().partition("\nabsl-py")[0])
    )
