"""How every command ends: one line and a code, whatever went wrong."""

import importlib
import subprocess
import sys

import pytest
from small_run import ROOT

from bert_jax import cli

SCRIPT = """
import sys
from bert_jax import cli

def main(argv):
    {}

cli.run(main)
"""


def ended(body: str, *flags: str, after: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT.format(body), *flags]
    shell = ["bash", "-c", f'"$@" {after}; exit ${{PIPESTATUS[0]}}', "bash"]
    return subprocess.run([*shell, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise cli.UserError('two is not three')", 2, "error: two is not three\n"),
        (
            "open('/dev/full', 'w').write('x' * 100_000)",
            1,
            "error: OSError: [Errno 28] No space left on device (--debug shows where)\n",
        ),
        ("raise cli.Interrupted('saved')", 75, "saved\n"),
        ("raise KeyboardInterrupt", 130, ""),
        (
            "with cli.saying_when_interrupted('the same command resumes'): raise KeyboardInterrupt",
            130,
            "the same command resumes\n",
        ),
        ("raise SystemExit(2)", 2, ""),
        ("return 1", 1, ""),
        ("return None", 0, ""),
    ],
)
def test_an_end_is_one_line_and_a_code(body, code, line):
    result = ended(body)
    assert (result.returncode, result.stderr) == (code, line)


@pytest.mark.parametrize(
    "command",
    [
        "bert_jax.predict answer --model=M --null_threshold=nan",
        "bert_jax.predict answer --model=M --top_k=0",
        "bert_jax.predict classify --model=M --batch_size=99999999999",
        "bert_jax.evaluate M F --batch_size=0",
        "bert_jax.evaluate M F --max_seq_length=-1",
        "bert_jax.evaluate M F --threshold=nan",
        "bert_jax.metrics W --window=0",
        "bert_jax.quickstart --corpus_mb=nan",
        "bert_jax.quickstart --num_steps=-1",
        "data_prep.build --input=I --tokenizer=T --output=O --workers=0",
        "data_prep.check D --examples=-1",
    ],
)
def test_a_number_out_of_range_is_refused_where_the_flag_is_read(command, capsys):
    module, *flags = command.split()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(flags)
    assert ended.value.code == 2
    name, value = flags[-1].split("=")
    assert f"argument {name}: '{value}' is not a" in capsys.readouterr().err


def test_debug_shows_where():
    result = ended("open('/no/such/file')", "--debug")
    assert result.returncode == 1 and "Traceback" in result.stderr
    assert "FileNotFoundError" in result.stderr


@pytest.mark.parametrize("end", ["return 0", "raise SystemExit(0)"])
def test_a_reader_that_has_enough_is_no_error(end):
    result = ended(f"[print(i) for i in range(100_000)]; {end}", after="| head -1")
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n", "")


@pytest.mark.parametrize(("package", "command"), [("bert_jax", "pretrain"), ("data_prep", "build")])
def test_a_package_lists_its_commands(package, command):
    lines = cli.commands(ROOT / package)
    assert any(line.split()[0] == command and len(line.split()) > 3 for line in lines if line)
    assert not any(line.split()[0] == "cli" for line in lines if line)


def test_the_tpu_extra_without_a_tpu_leaves_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert not cli._has_libtpu_alone(tmp_path)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: name)
    assert cli._has_libtpu_alone(tmp_path)
    vendor = tmp_path / "sys/bus/pci/devices/0000:00:05.0/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x8086\n")
    assert cli._has_libtpu_alone(tmp_path)
    vendor.write_text("0x1ae0\n")  # Google's
    assert not cli._has_libtpu_alone(tmp_path)
    vendor.unlink()
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/vfio").touch()  # there without any device
    assert cli._has_libtpu_alone(tmp_path)
    (tmp_path / "dev/vfio/0").touch()
    assert not cli._has_libtpu_alone(tmp_path)


@pytest.mark.parametrize("argument", ["--workdir=gs:/b/run", "--input=a.txt,gs:b/c", "gs:/b"])
def test_a_bucket_with_one_slash_is_no_local_folder(argument):
    with pytest.raises(cli.UserError, match="expected gs://BUCKET/PATH, with two slashes"):
        cli.prepare_buckets(["--output=tags:/x", argument])
    cli.prepare_buckets(["--output=tags:/x", "--x=log:/y"])


def test_a_long_line_of_another_library_is_cut():
    assert len(cli.brief(ValueError("x" * 9999))) < 600
