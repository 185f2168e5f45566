"""Every command with one input of it changed at random: an answer or one message, no traceback."""

import contextlib
import dataclasses
import importlib
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence

import pytest
from corpora import make_documents, write_jsonl
from harms import mutated
from small_finetune import reviews_config, write_reviews
from small_run import make_tokenizer, small_config

import bert_jax
from bert_jax import cli, convert, finetune
from bert_jax.data import tokenizer
from bert_jax.parallel import distributed
from data_prep import build

pytestmark = pytest.mark.slow

CASES = 240
COMMAND_LINES = """
data_prep.vocab --input=text.txt --output=OUT --vocab_size=300
data_prep.vocab --input=docs.jsonl --output=OUT --vocab_size=300 --min_frequency=1 --max_mb=1
data_prep.vocab --input=text.txt --output=OUT --from_tokenizer=tokenizer --vocab_size=150
data_prep.build --input=docs.jsonl --tokenizer=tokenizer --output=OUT --num_shards=1 --workers=1
data_prep.build --input=text.txt,docs.jsonl --weights=1,2 --tokenizer=hf --output=OUT --workers=1
data_prep.check data --examples=1 --workers=1
data_prep.check data --report=OUT.html --workers=1
bert_jax.pretrain --config=tiny.py --workdir=OUT
bert_jax.pretrain --config=tiny.py --workdir=run
bert_jax.convert to-hf --checkpoint=run --output=OUT
bert_jax.convert to-hf --checkpoint=tuned --output=OUT
bert_jax.convert from-hf --model=hf --output=OUT
bert_jax.finetune --config=reviews.py --init=run --workdir=OUT --config.train_file=train.csv
bert_jax.predict classify --model=tuned --input=dev.csv --output=OUT --columns=text=review
bert_jax.predict classify --model=tuned_hf --input=rows.jsonl --output=OUT
bert_jax.predict fill-mask --model=hf --input=masks.txt --output=OUT --top_k=2
bert_jax.predict embed --model=run --input=rows.jsonl --output=OUT.npy
bert_jax.evaluate tuned dev.csv --output=OUT.json
bert_jax.metrics run
bert_jax.metrics run tuned
bert_jax.plan --config=tiny.py --json --config.batch_size=8
"""
VALUES = ("", "0", "-1", "1", "nan", "inf", "1e30", "99999999999999999999", "x", "a,b", "1,,2")
PATHS = (
    "missing/dir",
    "text.txt/below",
    "/proc/nothing",
    "noise.png",
    "folder",
    "hf:",
    "gs:/b",
    "~x",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a good input of every kind."""
    world = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    documents = [
        ". ".join(" ".join(f"w{rng.randrange(90)}" for _ in range(8)) for _ in range(6)) + "."
        for _ in range(40)
    ]
    write_jsonl(world / "docs.jsonl", documents)
    (world / "text.txt").write_text("\n\n".join(make_documents(30)))
    (world / "masks.txt").write_text("w1 [MASK] w3\n[MASK] w5 [MASK]\n")
    tokenizer.save(make_tokenizer(), world / "tokenizer")
    flags = f"--input={world}/docs.jsonl --tokenizer={world}/tokenizer --output={world}/data"
    build.main(f"{flags} --max_seq_length=32 --validation_fraction=0.2 --num_shards=1".split())
    config = small_config(world / "data")
    config.update(num_steps=2, checkpoint_every=1, eval_every=0)
    config.optimizer.warmup_steps = 0
    bert_jax.pretrain.run(config, world / "run")
    (world / "tiny.py").write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    convert.to_hugging_face(world / "run", world / "hf")
    reviews = reviews_config(world)
    reviews.update(max_steps=2)
    write_reviews(world / "train.csv", 40, 0)
    write_reviews(world / "dev.csv", 20, 1)
    reviews.update(train_file="train.csv", validation_file="dev.csv")
    (world / "reviews.py").write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict({reviews.to_dict()!r})\n"
    )
    lines = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(documents)]
    (world / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (world / "noise.png").write_bytes(bytes(rng.randrange(256) for _ in range(500)))
    (world / "folder").mkdir()
    here = os.getcwd()
    os.chdir(world)
    try:
        finetune.run(reviews, world / "run", world / "tuned")
    finally:
        os.chdir(here)
    shutil.copytree(world / "tuned/hf", world / "tuned_hf")
    return world


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """JAX is up already, as it is not where a command begins."""
    monkeypatch.setattr(distributed, "initialize", lambda **_: None)


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    i = rng.randrange(len(content) + 1)
    kinds: Sequence[Callable[[], bytes]] = (
        lambda: b"",
        lambda: content[:i],
        lambda: content[:i] + bytes([rng.randrange(256)]) + content[i + 1 :],
        lambda: content[:i] + b'"' + content[i:],
        lambda: content[:i] + b"\x00\xff\xfe" + content[i:],
        lambda: content[:i] + b"[" * 3000 + content[i:],
        lambda: content.replace(b",", b"\t").replace(b"\n", b"\r"),
        lambda: content.replace(b"text", b"body").replace(b"review", b"text"),
        lambda: content[:i] + b"\n" + content[i:],
        lambda: b"\xef\xbb\xbf" + content,
    )
    return rng.choice(kinds)()


def change_file(path, rng: random.Random) -> str:
    """Changes a file, or one file of a folder, and says what it did."""
    if path.is_dir():
        path = rng.choice(sorted(x for x in path.rglob("*") if x.is_file()))
    kind = rng.random()
    if kind < 0.05:
        path.unlink()
        return f"{path.name} removed"
    if kind < 0.1:
        path.unlink()
        path.mkdir()
        return f"{path.name} is a folder"
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and kind < 0.7:
        *before, last = content.splitlines() if path.suffix == ".jsonl" else [content]
        with contextlib.suppress(ValueError):
            last = json.dumps(mutated(json.loads(last), rng)).encode()
        path.write_bytes(b"\n".join([*before, last]))
    else:
        path.write_bytes(changed_bytes(content, rng))
    return f"{path.name} changed"


@dataclasses.dataclass
class Outcome:
    code: int | str | None
    message: str


def call(module: str, argv: list[str], capsys) -> Outcome:
    """A command in this process, as `cli.run` runs it."""
    main = importlib.import_module(module).main
    try:
        cli.prepare_buckets(argv)
        code = main(argv)
        message = ""
    except SystemExit as ended:
        code, message = ended.code, ""
    except Exception as error:
        message, code = cli.outcome(error, argv)
    return Outcome(code, message + capsys.readouterr().err)


@pytest.mark.parametrize("seed", range(CASES))
def test_no_traceback(seed, world, tmp_path, monkeypatch, capsys):
    rng = random.Random(seed)
    here = tmp_path / "here"
    shutil.copytree(world, here)
    monkeypatch.chdir(here)
    lines = [line.split() for line in COMMAND_LINES.strip().splitlines()]
    module, *argv = lines[seed % len(lines)]
    places = range(len(argv))
    what = rng.random()
    if what < 0.3 and any("=" in argument for argument in argv):  # a flag's value
        i = rng.choice([i for i in places if "=" in argv[i]])
        name, _, value = argv[i].partition("=")
        argv[i] = f"{name}={rng.choice(PATHS if not value[0].isdigit() else VALUES)}"
        change = argv[i]
    elif what < 0.4:
        i = rng.choice(places)
        change = f"without {argv.pop(i)}"
    else:
        inputs = [
            path
            for argument in argv
            for name in argument.rpartition("=")[2].split(",")
            if name and (path := here / name).exists() and name != "."
        ]
        change = change_file(rng.choice(inputs), rng) if inputs else "nothing"
    argv = [argument.replace("OUT", "out") for argument in argv]
    outcome = call(module, argv, capsys)
    said = f"{module} {' '.join(argv)} [{change}]: {outcome.code} {outcome.message[-3000:]}"
    assert "Traceback" not in outcome.message, said
    assert outcome.code in (0, None, 1, 2), said
    if outcome.code == 2:
        error = [line for line in outcome.message.splitlines() if "error: " in line]
        assert error, said
        assert len(error[-1]) < 2500, said


def test_the_command_lines_work_unchanged(world, tmp_path, monkeypatch, capsys):
    for number, line in enumerate(COMMAND_LINES.strip().splitlines()):
        here = tmp_path / f"{number}"
        shutil.copytree(world, here)
        monkeypatch.chdir(here)
        module, *argv = line.replace("OUT", "out").split()
        outcome = call(module, argv, capsys)
        # So few documents are outside of some expected range.
        expected = (0, None) if module != "data_prep.check" else (0, 1)
        assert outcome.code in expected, f"{line}: {outcome.code} {outcome.message}"
