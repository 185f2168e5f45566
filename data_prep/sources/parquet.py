"""The text column of a Parquet file."""

import io
from collections.abc import Iterator

from etils import epath

from bert_jax.cli import UserError
from data_prep.sources import compression


def texts(path: str, field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"input {path}: reading Parquet needs pip install pyarrow") from None
    try:
        with epath.Path(path).open("rb") as raw, compression.decompressed(path, raw) as file:
            # Parquet is read from its end, so a compressed file is decompressed as a whole.
            seekable = io.BytesIO(file.read()) if path.endswith(compression.SUFFIXES) else file
            try:
                table = pyarrow.parquet.ParquetFile(seekable)
            except pyarrow.ArrowInvalid as error:
                raise UserError(f"input {path} is not a Parquet file: {error}") from None
            names = table.schema_arrow.names
            if field not in names:
                raise UserError(
                    f"input {path}: no column '{field}'; the columns are "
                    f"{', '.join(map(repr, names))} (choose one with --field=NAME)"
                )
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    if not isinstance(value, str | None):
                        raise UserError(f"input {path}: the column '{field}' does not hold text")
                    yield value or ""
    except (
        pyarrow.ArrowException,
        UnicodeDecodeError,
        *compression.UNREADABLE,
    ) as error:  # a corrupted page
        raise UserError(f"input {path} cannot be read: {error}") from None
