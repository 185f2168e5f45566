"""Several examples in one row: which go together, and how their row looks.

Shapes: G groups, E examples (of a group, or in all), R rows, L positions, M predictions of an
example, N of a row, K the most examples in a row.
"""

import io
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data import records
from bert_jax.data.records import EXAMPLES_PER_RECORD

LOG = logging.getLogger(__name__)

# Records whose examples are packed together. They are read together, so few of them; but the more
# there are to choose from, the less is left over.
GROUP_RECORDS = 8


def rows_of_examples(
    data_dir: epath.Path, split: str, sizes_R: np.ndarray, length: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of every example its row within its group, uint16[E]; of every group its rows, int64[G].

    Worked out once and kept beside the lengths, packing-SPLIT-MOST.npy, where that can be written.

    Args:
      sizes_R: examples of each record of the split.
      length, most: as of `first_fit`.

    Raises:
      UserError: the data set has no lengths of its examples, or those of other examples.
    """
    path, num_examples = data_dir / records.NUM_TOKENS.format(split=split), int(sizes_R.sum())
    if not path.exists():
        raise UserError(
            f"{data_dir} has no {path.name}, which packing needs: rebuild the data set "
            "(data_prep.build writes it since it knows of packing), or train with "
            "--config.packing=0"
        )
    with path.open("rb") as file:
        num_tokens_E = np.load(file)
    if len(num_tokens_E) != num_examples:
        raise UserError(
            f"{path} has {len(num_tokens_E)} lengths, the shards {num_examples} examples: "
            "it is another data set's; rebuild the data set"
        )
    ends = [*range(0, len(sizes_R), GROUP_RECORDS), len(sizes_R)]
    sizes_G = np.diff(np.concatenate([[0], np.cumsum(sizes_R)])[ends])
    kept = data_dir / f"packing-{split}-{most}.npy"
    if (row_E := _read(kept)) is not None:
        rows_G = _rows_if_valid(row_E, num_tokens_E, sizes_G, length, most)
        if rows_G is not None:
            return row_E, rows_G
        LOG.warning("%s does not fit the data set: packed again", kept)
    is_example_GE = np.arange(GROUP_RECORDS * EXAMPLES_PER_RECORD) < sizes_G[:, None]
    num_tokens_GE = np.zeros(is_example_GE.shape, np.uint16)
    num_tokens_GE[is_example_GE] = num_tokens_E
    row_GE = np.concatenate(
        [
            first_fit(part_GE, length, most)
            for part_GE in np.array_split(num_tokens_GE, -(-len(num_tokens_GE) // 1024))
        ]
    )
    row_E = row_GE[is_example_GE].astype(np.uint16)
    if jax.process_index() == 0:
        _write(kept, row_E)
    return row_E, row_GE.max(1).astype(np.int64) + 1


def _read(path: epath.Path) -> np.ndarray | None:
    try:
        with path.open("rb") as file:
            return np.load(file)
    except (OSError, ValueError, EOFError):  # not there, or not whole
        return None


def _write(path: epath.Path, row_E: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, row_E)
    try:
        files.write_whole(path, content.getvalue())
    except (OSError, UserError) as error:  # a data set that may only be read
        LOG.debug("%s: %s", path, error)


def _rows_if_valid(
    row_E: np.ndarray, num_tokens_E: np.ndarray, sizes_G: np.ndarray, length: int, most: int
) -> np.ndarray | None:
    """int64[G], the rows of each group; None unless the rows hold these examples as they must."""
    if row_E.dtype != np.uint16 or row_E.shape != num_tokens_E.shape:
        return None
    rows_G = np.maximum.reduceat(row_E, np.cumsum(sizes_G) - sizes_G).astype(np.int64) + 1
    row_E = row_E + np.repeat(np.cumsum(rows_G) - rows_G, sizes_G)
    examples_R = np.bincount(row_E)
    tokens_R = np.bincount(row_E, weights=num_tokens_E)
    whole = np.min(examples_R) > 0 and np.max(examples_R) <= most and np.max(tokens_R) <= length
    return rows_G if whole else None


def first_fit(num_tokens_GE: np.ndarray, length: int, most: int) -> np.ndarray:
    """int32[G, E]: each example's row in its group, by first-fit decreasing.

    Rows are numbered in the order of their longest examples, so that long and short ones alternate
    as they do among the examples.

    Args:
      num_tokens_GE: lengths, at most `length`; 0 where a group has no more examples (row -1).
      length: positions of a row.
      most: examples in a row, at least 2.
    """
    G, E = num_tokens_GE.shape
    order_GE = np.argsort(-num_tokens_GE.astype(np.int32), axis=1, kind="stable")
    tokens_GE = np.take_along_axis(num_tokens_GE, order_GE, 1).astype(np.int32)
    # Those above half a row do not fit together: each begins a row, without a search.
    begins_GE = 2 * tokens_GE > length
    row_GE = np.where(begins_GE, np.arange(E), -1)
    room_GR = np.where(begins_GE, length - tokens_GE, length)
    count_GR = begins_GE.astype(np.int32)
    longest_GR = np.where(begins_GE, order_GE, E)  # E: a row that is not begun
    for i in range(int(np.min(begins_GE.sum(1), initial=E)), E):
        (g,) = np.nonzero((row_GE[:, i] < 0) & (tokens_GE[:, i] > 0))
        row = (room_GR[g] >= tokens_GE[g, i, None]).argmax(1)
        row_GE[g, i] = row
        count_GR[g, row] += 1
        room_GR[g, row] = np.where(count_GR[g, row] < most, room_GR[g, row] - tokens_GE[g, i], 0)
        longest_GR[g, row] = np.where(count_GR[g, row] == 1, order_GE[g, i], longest_GR[g, row])
    number_GR = longest_GR.argsort(1, kind="stable").argsort(1, kind="stable")
    numbers_GE = np.where(row_GE < 0, -1, np.take_along_axis(number_GR, row_GE, 1))
    result_GE = np.empty((G, E), np.int32)
    np.put_along_axis(result_GE, order_GE, numbers_GE, 1)
    return result_GE


def max_predictions(arguments: Mapping[str, Any], most: int) -> int:
    """Predictions in a row at most; N, or M where `most` is 0, that is without packing.

    An example of n tokens has p(n) = min(M, max(1, round(n · masked_lm_prob))) of them at most,
    which is above its share n · masked_lm_prob by the rounding alone.

    Args:
      arguments: of the data set, by the names of data_prep.build's flags.
      most: examples in a row.
    """
    length, of_example = arguments["max_seq_length"], arguments["max_predictions_per_seq"]
    if not most:
        return of_example
    n = np.arange(3, length + 1)  # no example is shorter than [CLS] x [SEP]
    share = n * arguments["masked_lm_prob"]
    rounding = (np.clip(np.rint(share), 1, of_example) - share).max()
    return int(min(share[-1] + most * max(rounding, 0) + 1e-6, most * of_example))


def lay_out(
    examples: dict[str, np.ndarray],
    row_E: np.ndarray,
    num_rows: int,
    most: int,
    num_predictions: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Unpacked examples -> rows, each with its examples one behind the other.

    Returns: int32 input_ids, token_type_ids, position_ids (from 0 in every example) and
    attention_mask [R, L], the number of the example within its row from 1, 0 for padding;
    masked_lm_positions (of the row), masked_lm_ids and float32 masked_lm_weights [R, N]; int32
    next_sentence_labels and first_token_positions [R, K], -1 and 0 where a row has no more
    examples.

    Args:
      examples: a batch as PretrainingData makes it without packing.
      row_E: each example's row, below `num_rows`.
      most, num_predictions: K and N.
      pad_id: the id of [PAD].
    """
    order = np.argsort(row_E, kind="stable")
    row_E = row_E[order]
    num_tokens_E = examples["attention_mask"].sum(1)[order]
    slot_E = _rank(row_E, num_rows)
    begin_E = np.cumsum(num_tokens_E) - num_tokens_E
    begin_E -= begin_E[np.arange(len(order)) - slot_E]  # that of the row's first example

    def rows(width: int, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
        return np.full((num_rows, width), fill, dtype)

    length = examples["input_ids"].shape[1]
    result = {
        "input_ids": rows(length, pad_id),
        "attention_mask": rows(length),
        "token_type_ids": rows(length),
        "position_ids": rows(length),
        "masked_lm_positions": rows(num_predictions),
        "masked_lm_ids": rows(num_predictions),
        "masked_lm_weights": rows(num_predictions, dtype=np.float32),
        "next_sentence_labels": rows(most, -1),
        "first_token_positions": rows(most),
    }
    e, position = np.nonzero(np.arange(length) < num_tokens_E[:, None])
    to = row_E[e], begin_E[e] + position
    for name in ("input_ids", "token_type_ids"):
        result[name][to] = examples[name][order[e], position]
    result["attention_mask"][to] = slot_E[e] + 1
    result["position_ids"][to] = position
    e, column = np.nonzero(examples["masked_lm_weights"][order])
    to = row_E[e], _rank(row_E[e], num_rows)
    source = order[e], column
    positions = examples["masked_lm_positions"][source]
    result["masked_lm_positions"][to] = begin_E[e] + positions
    result["masked_lm_ids"][to] = examples["masked_lm_ids"][source]
    result["masked_lm_weights"][to] = examples["masked_lm_weights"][source]
    result["next_sentence_labels"][row_E, slot_E] = examples["next_sentence_labels"][order]
    result["first_token_positions"][row_E, slot_E] = begin_E
    return result


def _rank(row_X: np.ndarray, num_rows: int) -> np.ndarray:
    """[0, 0, 0, 2, 2] -> [0, 1, 2, 0, 1]: each one's place in its row; rows ascend."""
    count_R = np.bincount(row_X, minlength=num_rows)
    return np.arange(len(row_X)) - (np.cumsum(count_R) - count_R)[row_X]
