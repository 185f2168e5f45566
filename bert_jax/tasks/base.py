"""What every task shares: its protocol, the rows that it makes, and how texts are joined.

B batch, L length.
"""

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from bert_jax.data.tokenizer import Tokenizer

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Feature:
    """One row of a batch, made of an example or of a part of one.

    Attributes:
      arrays: "input_ids" and "token_type_ids" int[…, L], and the task's targets; "attention_mask"
        where it is not all ones.
      example: index of its example.
      origin: what the task needs to lead the row's outputs back to the example.
    """

    arrays: dict[str, Any]
    example: int
    origin: Any = None


class Task(Protocol):
    """What `finetune` asks of a task.

    Attributes:
      metric: the metric that the best epoch is chosen by.
      labels: names of the head's outputs; () where it has none to name.
      scheme: of labels of entities, for the user ("BIOES, converted to BIO"); "" for none.
    """

    labels: tuple[str, ...]
    scheme: str

    @property
    def metric(self) -> str: ...

    def read(self, source: str, training: bool = False) -> list[Any]:
        """The labelled examples of a file, each checked.

        Rows without a label or a text are skipped, with a warning, up to config.max_skipped.

        Args:
          training: settles `labels` from the config or these examples; other files are read after
            the training file, or after `labels` has been assigned.

        Raises:
          UserError: rows that cannot be read, or too many without a label or a text.
        """

    def features(self, examples: list[Any]) -> list[Feature]:
        """The batch rows of the examples, in their order."""

    def loss_sum(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The loss added up over the batch; rows with batch["weights"] 0 are padding."""

    def loss_weight(self, batch: Batch) -> jax.Array:
        """What `loss_sum` is divided by."""

    def evaluate(
        self, examples: list[Any], features: list[Feature], outputs: list[np.ndarray]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics, and one JSON object per example; `outputs` are each feature's logits."""


def join(
    tokenizer: Tokenizer, first: list[int], second: list[int] | None, max_length: int
) -> tuple[list[int], list[int]]:
    """The tokenizer's layout of one or two texts, cut to `max_length`, and all token type ids.

    Cuts as transformers' `truncation=True` does: from the end of the longer text, down to half the
    room each if both are longer than that.

    With BERT's layout:

        join(tokenizer, [7, 8], [9], 6) -> [CLS 7 8 SEP 9 SEP], [0 0 0 0 1 1]
    """
    if second is None:
        return tokenizer.lay_out(first[: max_length - tokenizer.num_special(1)])
    room = max_length - tokenizer.num_special(2)
    shorter, longer = sorted((len(first), len(second)))
    if shorter + longer > room:
        # The half that is rounded up goes to the longer text.
        shorter = min(shorter, room // 2)
        longer = room - shorter
    of_first, of_second = (longer, shorter) if len(first) > len(second) else (shorter, longer)
    return tokenizer.lay_out(first[:of_first], second[:of_second])
