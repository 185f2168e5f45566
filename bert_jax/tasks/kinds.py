"""The kinds of tasks by name: what reads and scores each, and the head that it is learned with."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import ml_collections

from bert_jax.cli import UserError
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.models import heads
from bert_jax.tasks.answers import QuestionAnswering
from bert_jax.tasks.base import Task
from bert_jax.tasks.choices import MultipleChoice
from bert_jax.tasks.text import MultiLabelClassification, TextClassification, TextRegression
from bert_jax.tasks.tokens import TokenClassification

# Name in config.task -> the task.
TASKS: dict[str, Callable[[ml_collections.ConfigDict, Tokenizer], Task]] = {
    "multi_label_classification": MultiLabelClassification,
    "multiple_choice": MultipleChoice,
    "question_answering": QuestionAnswering,
    "text_classification": TextClassification,
    "text_regression": TextRegression,
    "token_classification": TokenClassification,
}
# The same name -> (model config, number of labels) -> encoder and head.
HEADS: dict[str, Callable[[Any, int], nn.Module]] = {
    "multi_label_classification": heads.SequenceClassifier,
    "multiple_choice": lambda model, num_labels: heads.MultipleChoice(model),
    "question_answering": lambda model, num_labels: heads.SpanClassifier(model),
    "text_classification": heads.SequenceClassifier,
    "text_regression": heads.SequenceClassifier,
    "token_classification": heads.TokenClassifier,
}


# Settings of a fine-tuning that belong to the model: predictions read texts by them. They travel in
# the config.json of an export, under "bert_jax".
MODEL_SETTINGS: dict[str, type] = {
    **dict.fromkeys(("max_seq_length", "max_question_length", "doc_stride"), int),
    **dict.fromkeys(("max_answer_length", "word_index", "tag_index"), int),
    **dict.fromkeys(("null_threshold", "threshold"), float),
    "may_have_none": bool,
    **{"pooling": str, "normalize": bool},
    **dict.fromkeys(("text_column", "text_pair_column", "label_column", "label_columns"), str),
    **dict.fromkeys(("words_column", "tags_column", "label_names", "metric"), str),
    **dict.fromkeys(("context_column", "beginning_column", "choice_columns"), str),
}


def model_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in `config` that belong to the model; those of another type are skipped."""
    return {
        name: config[name]
        for name, kind in MODEL_SETTINGS.items()
        if type(config.get(name)) is kind
    }


def make_task(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> Task:
    """The task that `config.task` names.

    Raises:
      UserError: an unknown name.
    """
    if config.task not in TASKS:
        raise UserError(f"config.task={config.task!r} is not one of {', '.join(TASKS)}")
    return TASKS[config.task](config, tokenizer)


def make_module(task: str, model: Any, num_labels: int) -> nn.Module:
    """The encoder of a model config with a task's head.

    It is called with input ids, attention mask, segments and dropout keys (None: no dropout).
    """
    return HEADS[task](model, num_labels)
