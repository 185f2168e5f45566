"""The command line of config-driven commands, and the recipes themselves."""

import importlib
import pathlib

import jax
import pytest

from bert_jax import config as config_lib
from bert_jax.cli import UserError
from bert_jax.models import heads

PARSE = dict(usage="usage: …", workdir="directory of the run")
SIZES = {  # published parameter counts, millions (README of google-research/bert)
    "tiny": 4.4,
    "mini": 11.3,
    "small": 29.1,
    "medium": 41.7,
    "base": 110.1,
    "large": 335.2,
}


def test_overrides_are_applied():
    config, values = config_lib.parse(
        [
            "--config=configs/bert_mini.py:laptop",
            "--workdir=/w",
            "--config.optimizer.learning_rate=0.5",
            "--config.model.scan_layers",
        ],
        **PARSE,
    )
    assert values == {"workdir": "/w"}
    assert config.optimizer.learning_rate == 0.5
    assert config.model.scan_layers is True
    assert config.model.hidden_size == 256


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=/w"], "missing --config"),
        (
            ["--config=configs/bert_huge.py", "--workdir=/w"],
            "configs/bert_huge.py does not exist: did",
        ),
        (["--config=bert_larg", "--workdir=/w"], "did you mean --config=bert_large?"),
        (["--config=configs", "--workdir=/w"], "configs is a directory"),
        (["--config=finetune/sst2", "--workdir=/w"], "config for another command"),
        (["--config=quickstart:laptop", "--workdir=/w"], "has no presets"),
        (["--config=configs/bert_mini.py"], "missing --workdir"),
        (["--config=configs/bert_mini.py:phone", "--workdir=/w"], "unknown preset 'phone'"),
        (
            ["--config=configs/bert_mini.py", "--workdir=/w", "--config.bach_size=3"],
            "no field 'bach_size'; did you mean --config.batch_size",
        ),
        (
            ["--config=configs/bert_mini.py", "--workdir=/w", "--config.learning_rate=3"],
            "no field 'learning_rate'; did you mean --config.optimizer.learning_rate",
        ),
        (["--config=configs/bert_mini.py", "--workdir=/w", "--config.seed=x"], "config.seed=x"),
        (["--config=configs/bert_mini.py", "--workdir=/w", "surplus"], "unexpected argument"),
        (["--config=configs/bert_mini.py", "--workdri=/w"], "workdri"),
    ],
)
def test_mistakes_are_named(argv, message):
    with pytest.raises(UserError, match=message):
        config_lib.parse(argv, **PARSE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = (\n", "mine.py, line 1: not Python"),
        (b"\n\n1 / 0\n", "mine.py, line 3: ZeroDivisionError: division by zero"),
        (b"import no_such_module\n", "line 1: ModuleNotFoundError: No module named"),
        (b"def get_config():\n    raise SystemExit(3)\n", "line 2: SystemExit: 3"),
        (b"\x89PNG\x00\xff", "cannot be read as Python"),
        (b"just some words", "line 1: not Python"),
        (b"config = 3\n", "has no function get_config()"),
        (b"def get_config():\n    pass\n", "returns a NoneType"),
        (b"def get_config():\n    return {}\n", "returns a dict"),
        (b"def get_config(arg):\n    return {}\n", "needs an argument"),
        (
            b"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n",
            "has no field accumulate_steps, batch_size",
        ),
        (
            b"from bert_jax import recipe\ndef get_config():\n    config = recipe('bert_tiny')\n"
            b"    del config.optimizer.warmup_fraction, config.mesh.fsdp\n    return config\n",
            "has no field mesh.fsdp, optimizer.warmup_fraction, which bert_base has",
        ),
        (
            b"import bert_jax.config as c\ndef get_config():\n    return c.recipe('bert_bse')\n",
            "mine.py: config bert_bse does not exist: did you mean --config=bert_base?",
        ),
    ],
)
def test_a_config_file_that_gives_none_is_one_line(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        config_lib.parse([f"--config={path}", "--workdir=/w"], **PARSE)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_recipes_go_by_name_wherever_a_command_is_typed(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "bert_base.py").write_text("raise ValueError('your own')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config, _ = config_lib.parse(["--config", "bert_tiny:laptop", "--workdir", "/w"], **PARSE)
    assert config.model.hidden_size == 128 and config.num_steps < 1_000_000
    assert config_lib.recipe("finetune/glue:mnli").labels.startswith("0=entailment")
    with pytest.raises(UserError, match="your own"):
        config_lib.recipe("configs/bert_base.py")


def test_a_recipe_takes_overrides_as_flags_do():
    changed = {"mesh.fsdp": 8, "phases[1].data_dir": "data_512", "optimizer.learning_rate": 1}
    config = config_lib.recipe("bert_base", batch_size=64, **changed)
    assert (config.batch_size, config.mesh.fsdp) == (64, 8)
    assert config.phases[1].data_dir == "data_512" and config.optimizer.learning_rate == 1.0
    with pytest.raises(UserError, match="no field 'bach_size'; did you mean"):
        config_lib.recipe("bert_base", bach_size=64)
    with pytest.raises(UserError, match="batch_size='many'"):
        config_lib.recipe("bert_base", batch_size="many")


def test_every_recipe_has_a_name():
    names = config_lib.names()
    assert "bert_base" in names and "finetune/sst2" in names and "finetune/base" not in names
    for name in names:
        config_lib.recipe(name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["", "laptop"])
def test_sizes_are_the_published_ones(size, form):
    config = config_lib.recipe(f"bert_{size}:{form}")
    model = heads.make_model(config)
    shapes = jax.eval_shape(lambda key: heads.init_params(model, key), jax.random.key(0))
    encoder = sum(leaf.size for leaf in jax.tree.leaves(shapes["bert"]))
    padding = (model.config.padded_vocab_size - 30_522) * model.config.hidden_size
    head = sum(leaf.size for leaf in jax.tree.leaves(shapes)) - encoder
    total = encoder - padding
    # The published counts leave out the heads, or (large) include them: within 1 % either way.
    assert min(abs(total / 1e6 / SIZES[size] - 1), abs((total + head) / 1e6 / SIZES[size] - 1)) < (
        0.01
    )


def test_every_recipe_says_how_to_run_it():
    for path in pathlib.Path("configs").glob("bert_*.py"):
        assert f"--config={path}" in path.read_text()


@pytest.mark.parametrize("module", ["data_prep.build", "data_prep.vocab", "bert_jax.metrics"])
def test_help_has_the_defaults_that_there_are(module, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: " in text and "(default: None)" not in text


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("seed=4294967296", "seed=4294967296: expected 0 to 4294967295"),
        ("seed=-1", "seed=-1: expected 0 to"),
        ("seed=9223372036854775808", "seed=9223372036854775808: expected 0 to"),
        ("model.hidden_dropout_prob=0.99999", "expected 0 to 0.999"),
        ("model.attention_probs_dropout_prob=-0.1", "expected 0 to 0.999"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate=nan: expected a finite number"),
        ("guard.max_loss_ratio=inf", "guard.max_loss_ratio=inf: expected a finite number"),
        ("batch_size=2147483648", "expected less than 2147483648"),
        ("model.vocab_size=99999999999", "expected less than 2147483648"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused(field, message):
    argv = ["--config=configs/bert_mini.py", "--workdir=/w", f"--config.{field}"]
    with pytest.raises(UserError, match=message):
        config_lib.parse(argv, **PARSE)
    name, _, value = field.partition("=")
    number = float(value) if "." in value or value in ("nan", "inf") else int(value)
    with pytest.raises(UserError, match=message):
        config_lib.recipe("bert_mini", **{name: number})


def test_the_seeds_of_a_sweep_are_checked():
    with pytest.raises(UserError, match=r"seeds=.*: expected 0 to 4294967295"):
        config_lib.recipe("finetune/sst2", seeds=(1, 2**32))


def test_help_explains_every_field(capsys):
    for name in config_lib.names():
        meanings = config_lib.explanations(name)
        fields = [field for field, _ in config_lib.leaves(config_lib.load(name))]
        missing = {x for x in fields if not x.startswith("phases[") and x not in meanings}
        assert not missing, f"{name}: a comment beside or above these says what they are"
    with pytest.raises(SystemExit):
        config_lib.parse(["--config=bert_tiny", "--help"], "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--config.batch_size=256 sequences per optimizer step, over all devices" in shown
    assert "--config.phases[0].packing=0 Pairs packed" in shown
    assert "--config.phases[1].max_seq_length=0 given, data of another length is refused" in shown


@pytest.mark.parametrize("equals", [True, False])
def test_flags_are_written_with_or_without_an_equals_sign(equals):
    pairs = {"config": "bert_tiny:laptop", "config.keep_best": "False", "config.seed": "3"}
    pairs |= {"config.optimizer.end_factor": "-0.5", "workdir": "w"}
    flags = [(f"--{k}={v}",) if equals else (f"--{k}", v) for k, v in pairs.items()]
    config, values = config_lib.parse(
        [x for flag in flags for x in flag], "", workdir="a directory"
    )
    assert (config.keep_best, config.seed, config.optimizer.end_factor) == (False, 3, -0.5)
    assert values["workdir"] == "w"
