"""Files of text vectors: .npy, the rows in the order of the texts, and .parquet, with their ids."""

import importlib.util
import io
from collections.abc import Iterable
from typing import Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError

FORMATS = (".npy", ".parquet")


def check(output: str) -> None:
    """Raises UserError if the package that writes this kind of file is not there."""
    if epath.Path(output).suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{output} needs pyarrow: pip install 'bert_jax[parquet]'")


def write(output: str, results: Iterable[tuple[dict[str, Any], Any]], source: str) -> None:
    """Writes the vectors of texts, whole or not at all.

    .npy holds float32[N, D]. .parquet has the columns `row`, the number of the text from 0; `id`,
    as text, if a record has one; and `embedding`, a list of D float32.

    Args:
      output: the file; its suffix is one of FORMATS.
      results: (record, float32[D]) of every text.
      source: where the texts are from, for messages.

    Raises:
      UserError: there are no texts.
    """
    import numpy as np

    ids, vectors = [], []
    for record, vector in results:
        ids.append(record.get("id"))
        vectors.append(vector)
    if not vectors:
        raise UserError(f"{source} has no texts")
    matrix_ND = np.stack(vectors).astype(np.float32)
    buffer = io.BytesIO()
    if epath.Path(output).suffix == ".npy":
        np.save(buffer, matrix_ND)
    else:
        import pyarrow
        import pyarrow.parquet

        columns = {"row": pyarrow.array(range(len(matrix_ND)), pyarrow.int64())}
        if any(id is not None for id in ids):
            columns["id"] = pyarrow.array([None if id is None else str(id) for id in ids])
        columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(matrix_ND.ravel()), matrix_ND.shape[1]
        )
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    files.write_whole(output, buffer.getvalue())
