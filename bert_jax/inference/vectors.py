"""Files of text vectors: .npy, the rows in the order of the texts, and .parquet, with their ids.

N texts, D hidden width.
"""

import importlib.util
import io
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils import epath

from bert_jax.cli import UserError
from bert_jax.inference import outputs

FORMATS = (".npy", ".parquet")
_GROUP = 1 << 16  # rows that are turned into Parquet at once


def check(output: str) -> None:
    """Raises UserError if the package that writes this kind of file is not there."""
    if epath.Path(output).suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{output} needs pyarrow: pip install 'bert_jax[parquet]'")


def write(
    output: str,
    identity: dict[str, Any],
    remaining: Callable[[int], Iterable[np.ndarray]],
    records: Iterable[dict[str, Any]],
    count: int,
    width: int,
) -> None:
    """Writes the vectors of texts as they come; resumed as `outputs.whole` says.

    .npy holds float32[N, D]. .parquet has the columns `row`, the number of the text from 0; `id`,
    as text, if a record has one; and `embedding`, a list of D float32.

    Args:
      output: the file; its suffix is one of FORMATS.
      remaining: (number of texts done before) -> float32[D] of each further one.
      records: of the texts, for their ids; read after the vectors.
      count: N.
      width: D.
    """
    layout = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, layout)

    with outputs.whole(output, identity, header.getvalue(), 4 * width) as partial:
        vectors = remaining(partial.done)
        partial.write(np.ascontiguousarray(x_D, "<f4").tobytes() for x_D in vectors)
        if epath.Path(output).suffix == ".parquet":
            scratch = partial.path.with_name(f"{partial.path.name}.parquet")
            _to_parquet(np.load(partial.path, mmap_mode="r"), records, scratch)
            scratch.replace(partial.path)


def _to_parquet(
    matrix_ND: np.ndarray, records: Iterable[dict[str, Any]], target: pathlib.Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    ids = [None if record.get("id") is None else str(record["id"]) for record in records]
    fields = [("row", pyarrow.int64())]
    if any(id is not None for id in ids):
        fields.append(("id", pyarrow.string()))
    fields.append(("embedding", pyarrow.list_(pyarrow.float32(), matrix_ND.shape[1])))
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for start in range(0, len(matrix_ND), _GROUP):
            block_ND = matrix_ND[start : start + _GROUP]
            columns = {
                "row": pyarrow.array(range(start, start + len(block_ND)), pyarrow.int64()),
                "id": pyarrow.array(ids[start : start + len(block_ND)], pyarrow.string()),
                "embedding": pyarrow.FixedSizeListArray.from_arrays(
                    pyarrow.array(block_ND.ravel()), matrix_ND.shape[1]
                ),
            }
            writer.write_table(pyarrow.table([columns[name] for name, _ in fields], schema=schema))
