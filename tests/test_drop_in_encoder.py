"""An encoder is a drop-in: a row of the table, and everything else works with it."""

import dataclasses
import json

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import pytest
from small_run import LENGTH, VOCAB_SIZE, numbers

from bert_jax import convert, finetune, predict, pretrain
from bert_jax.cli import UserError
from bert_jax.models import architectures
from bert_jax.models.architectures import ARCHITECTURES, Architecture
from bert_jax.models.layers.dropout import dropout
from bert_jax.models.layers.positions import gather_positions
from bert_jax.runs.telemetry import read
from configs.finetune import squad, swag, text_classification, token_classification


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int
    hidden_size: int = 16
    num_hidden_layers: int = 0
    max_position_embeddings: int = LENGTH
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    initializer_range: float = 0.5
    layer_norm_eps: float = 1e-12
    dtype: str = "float32"
    dropout_rng: str = "hash"
    padded_vocab_size = property(lambda self: self.vocab_size)
    max_length = property(lambda self: self.max_position_embeddings)


class ToyEncoder(nn.Module):
    """A token's state is its embedding and the mean of all of its text."""

    config: ToyConfig

    def setup(self):
        self.word_embeddings = nn.Embed(self.config.vocab_size, self.config.hidden_size)

    def __call__(self, ids, mask, types, keys=None, _=None, first=None, read=None, tables=None):
        x_BLD, mask_BL1 = self.word_embeddings(ids), (mask > 0)[..., None]
        mean_BD = (x_BLD * mask_BL1).sum(1) / jnp.maximum(mask_BL1.sum(1), 1)
        x_BLD = dropout(x_BLD + mean_BD[:, None], keys, self.config.hidden_dropout_prob, 0)
        return gather_positions(x_BLD, read), mean_BD

    def encode(self, *inputs):
        return self(*inputs)[0]

    def pooled(self, *inputs):
        return self(*inputs)[1]

    def token_tables(self, batch):
        return self.word_embeddings.embedding[None]

    def token_scores(self, x_BMD, tables_NVD, bias_V):
        return x_BMD @ tables_NVD[0].T + bias_V


TOY = Architecture(
    name="toy",
    config_class=ToyConfig,
    encoder=ToyEncoder,
    prefix="toy",
    dropout_sites=lambda config: 1,
    multiplications=lambda config, length, read: 0,
)


@pytest.fixture
def toy(config, monkeypatch) -> ml_collections.ConfigDict:
    """A recipe that pretrains it for ten steps."""
    monkeypatch.setitem(ARCHITECTURES, "toy", TOY)
    fields = architectures.fields_of(ToyConfig(VOCAB_SIZE))
    config.model = ml_collections.ConfigDict(fields)
    config.num_steps, config.eval_every, config.checkpoint_every = 10, 5, 5
    config.optimizer.learning_rate = 0.05
    return config


# Of each task a recipe, a small file, what is asked of the result, and what it may say.
TEXTS = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9"] * 4
ROWS = "\n".join(f"{text},{'yes' if i % 3 else 'no'}" for i, text in enumerate(TEXTS))
SENTENCES = "\n".join(f"w{i} {'B-PER' if i % 3 else 'O'}\nw{i + 1} O\n" for i in range(12))
QUESTION = {"id": "q", "question": "w1 w2", "answers": [{"text": "w5", "answer_start": 3}]}
SQUAD = {"data": [{"paragraphs": [{"context": "w4 w5 w6", "qas": [QUESTION]}] * 8}]}
CHOICES = "sent1,sent2,ending0,ending1,ending2,ending3,label\n" + "w1,w2,w3,w4,w5,w6,1\n" * 8
TASKS = {
    "classify": (
        *(text_classification, "csv", f"text,label\n{ROWS}\n"),
        *({"text": "w1 w2"}, {"yes", "no"}),
    ),
    "tag": (
        token_classification,
        "conll",
        SENTENCES,
        {"tokens": ["w1", "w2"]},
        {"B-PER", "I-PER", "O"},
    ),
    "answer": (
        *(squad, "json", json.dumps(SQUAD)),
        *({"question": "w1 w2", "context": "w4 w5"}, {"w4", "w5", "w4 w5"}),
    ),
    "choose": (swag, "csv", CHOICES, {"context": "w1", "choices": ["w3", "w4"]}, {0, 1}),
}


def ask(command, model, record, directory):
    """What the command says of one record."""
    file, output = directory / "input.jsonl", directory / "output.jsonl"
    file.write_text(json.dumps(record) + "\n")
    predict.main([command, f"--model={model}", f"--input={file}", f"--output={output}"])
    return json.loads(output.read_text())


def test_an_encoder_that_is_registered_does_all_that_others_do(toy, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain.run(toy, whole)
    losses = [line["mlm_loss"] for line in read(whole) if "mlm_loss" in line]
    assert losses[-1] < losses[0] - 0.3
    toy.num_steps = 5
    toy.optimizer.end_factor = 1.0
    pretrain.run(toy, parts)
    toy.num_steps = 10
    pretrain.run(toy, parts)
    assert [line["step"] for line in numbers(parts)] == [line["step"] for line in numbers(whole)]

    assert len(ask("embed", whole, {"text": "w1 w2"}, tmp_path)["embedding"]) == 16
    (mask,) = ask("fill-mask", whole, {"text": "w1 [MASK] w3"}, tmp_path)["masks"]
    assert mask[0]["score"] > 0
    with pytest.raises(UserError, match="'toy'"):
        convert.to_hugging_face(whole, tmp_path / "hf")

    for command, (recipe, suffix, text, record, possible) in TASKS.items():
        file = tmp_path / f"{command}.{suffix}"
        file.write_text(text)
        config = recipe.get_config()
        config.train_file = config.validation_file = str(file)
        config.num_epochs, config.batch_size, config.max_seq_length = 1, 4, 16
        if command == "answer":
            config.max_question_length, config.doc_stride = 4, 4
        run = tmp_path / command
        finetune.run(config, whole, run)
        answer = ask(command, run, record, tmp_path)
        found = answer.get("labels", [answer.get("prediction")])
        assert found and set(found) <= possible
