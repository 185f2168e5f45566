"""The wheel, as a user installs it: in an empty environment, from folders that are no clone."""

import os
import pathlib
import subprocess
import sys

import pytest
from small_run import ROOT

from bert_jax.data.records import Manifest

pytestmark = pytest.mark.slow

TEXT = "\n\n".join(
    "\n".join(
        f"The {noun} number {i} is {i * 7 % 13} days old. It went home at {j}." for j in range(6)
    )
    for i, noun in enumerate(["cat", "ship", "house", "river", "moon"] * 12)
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> pathlib.Path:
    """The folder of the scripts of an environment that holds the wheel and what it needs."""
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", directory, ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    (wheel,) = directory.glob("bert_jax-*.whl")
    install = [directory / "venv" / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*install, "-c", ROOT / "constraints.txt", wheel], check=True)
    return directory / "venv" / "bin"


@pytest.mark.parametrize("own_configs", [False, True])
def test_the_whole_path_from_any_folder(environment, tmp_path, own_configs):
    if own_configs:  # a user's folder of that name is not in the way
        (tmp_path / "configs").mkdir()
        for name in ("__init__.py", "bert_tiny.py", "bert_base.py"):
            (tmp_path / "configs" / name).write_text("raise ImportError('a user\u0027s own')\n")
    (tmp_path / "text.txt").write_text(TEXT)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}

    def run(name: str, *flags: str) -> str:
        command = [environment / f"bert-jax-{name}", *flags]
        result = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    run("vocab", "--input=text.txt", "--vocab_size=200", "--output=tokenizer")
    run(
        "build",
        *("--input=text.txt", "--tokenizer=tokenizer", "--output=data", "--num_shards=2"),
        *("--max_seq_length=32", "--validation_fraction=0.1"),
    )
    run("check", "data")
    vocab_size = Manifest.read(tmp_path / "data").vocab_size  # so short a text has fewer than 200
    run(
        "pretrain",
        *("--config=bert_tiny:laptop", "--workdir=run", "--config.data_dir=data"),
        *(f"--config.model.vocab_size={vocab_size}", "--config.batch_size=8"),
        "--config.num_steps=6",
        *("--config.optimizer.warmup_steps=2", "--config.eval_every=3"),
    )
    run("convert", "to-hf", "--checkpoint=run", "--output=hf")
    assert (tmp_path / "hf" / "model.safetensors").exists()
    (tmp_path / "masked.txt").write_text("The cat is [MASK] days old.\n")
    run("predict", "fill-mask", "--model=run", "--input=masked.txt", "--output=guesses.jsonl")
    assert '"masks"' in (tmp_path / "guesses.jsonl").read_text()
    # With the scripts that pages hold.
    explain = ("--model=run", "--input=masked.txt", "--output=words.html", "--steps=4")
    run("explain", "attribution", *explain)
    assert "keys({ArrowRight" in (tmp_path / "words.html").read_text()
