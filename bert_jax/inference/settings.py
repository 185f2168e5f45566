"""Settings of a task that belong to a model: what it was fine-tuned with, else the recipe's."""

import functools
import math
from typing import Any

import ml_collections

from bert_jax import config as config_lib
from bert_jax.cli import UserError
from bert_jax.inference.forward import Forward
from bert_jax.tasks import kinds
from bert_jax.tasks.answers import QuestionAnswering
from bert_jax.tasks.base import Task

RECIPES = {
    "multi_label_classification": "finetune/multi_label_classification",
    "multiple_choice": "finetune/swag",
    "question_answering": "finetune/squad",
    "text_classification": "finetune/text_classification",
    "text_regression": "finetune/text_regression",
    "token_classification": "finetune/token_classification",
}


@functools.cache
def _recipe(task: str) -> ml_collections.ConfigDict:
    return config_lib.recipe(RECIPES[task])


def task_config(model: Forward, **fields: Any) -> ml_collections.ConfigDict:
    """A config for a task on `model`: `fields`, else the model's settings, else the recipe's.

    Raises:
      UserError: the model has no fine-tuned head, or its task no such field.
    """
    if model.task not in RECIPES:
        raise UserError(
            f"expected a model that was fine-tuned, for {', '.join(RECIPES)}; this is a "
            f"{model.task} model"
        )
    recipe = _recipe(model.task)
    if unknown := sorted(fields.keys() - recipe.keys()):
        raise UserError(f"a {model.task} model has no setting {', '.join(unknown)}")
    for name, value in fields.items():
        if isinstance(value, float) and math.isnan(value):  # every comparison with it is false
            raise UserError(f"{name} is {value}: expected a number")
    config = ml_collections.ConfigDict(recipe.to_dict())
    own = {name: value for name, value in model.settings.items() if name in recipe}
    # What a run's config.json has there are the head's labels, not their names in the data.
    own["labels"] = model.settings.get("label_names", "")
    config.update({**own, **fields})
    config.task, config.max_seq_length = model.task, model.max_seq_length
    fitting = model.length_is_own and "max_question_length" in model.settings
    if model.task == "question_answering" and not fitting:  # they were not made for this length
        config.max_question_length = min(config.max_question_length, model.max_seq_length // 4)
        config.doc_stride = max(1, min(config.doc_stride, model.max_seq_length // 3))
    return config


def task_of(model: Forward, **fields: Any) -> Task:
    """The model's task, ready to read files and to score outputs; arguments as `task_config`'s."""
    config = task_config(model, **fields)
    task = kinds.make_task(config, model.tokenizer)
    if model.labels:
        task.labels = model.labels
    if isinstance(task, QuestionAnswering):
        task.may_have_none = model.settings.get("may_have_none", False)
        if "null_threshold" in fields:
            task.may_have_none = fields["null_threshold"] < math.inf
    return task
