"""The command line of config-driven commands, and the recipes themselves."""

import importlib
import pathlib

import jax
import pytest

from bert_jax import config as config_lib
from bert_jax.cli import UserError
from bert_jax.training import step as train

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
        (["--config=configs/bert_huge.py", "--workdir=/w"], "configs/bert_huge.py does not exist"),
        (["--config=configs/bert_mini.py"], "missing --workdir"),
        (["--config=configs/bert_mini.py:phone", "--workdir=/w"], "unknown form 'phone'"),
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["", "laptop"])
def test_sizes_are_the_published_ones(size, form):
    config = importlib.import_module(f"configs.bert_{size}").get_config(form)
    model = train.make_model(config)
    shapes = jax.eval_shape(lambda key: train.init_params(model, key), jax.random.key(0))
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
