"""A model applied to all records of a source, with the results in a file or as lines."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.inference import inputs, outputs, vectors
from bert_jax.inference import model as models
from bert_jax.inference.inputs import Record, Records
from bert_jax.parallel import host_memory, program_cache


def prepare(
    command: str,
    source: str,
    input: str,
    output: str,
    jsonl: bool,
    columns: str,
    options: dict[str, Any],
    **settings: Any,
) -> "Job":
    """A job whose output, inputs and model, in this order, have been checked.

    Args:
      source: of the model.
      output: "-" for none.
      jsonl: whether lines of the input are JSON.
      columns: as `inputs.parse_columns` takes them; the others are called as in the data that the
        model was fine-tuned on.
      settings: further arguments of `model.load`.

    Raises:
      UserError: they do not go together; nothing has been computed.
    """
    if output != "-":
        outputs.check(output)
        if files.absolute(output) == files.absolute(input):
            raise UserError(f"--output={output} is the input: give another file")
    if command == "embed":
        vectors.check(output)
    given = inputs.parse_columns(columns)

    def names() -> dict[str, str]:
        return {**inputs.columns(models.settings(source)), **given}

    mask = models.mask(source) if command == "fill-mask" else ""
    records = inputs.read(input, command, jsonl, names, mask)
    host_memory.keep_freed()
    program_cache.tidy()
    return Job(models.load(source, **settings), command, records, options)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be computed.

    Attributes:
      command: a key of `inputs.FIELDS`.
      options: the other arguments of the model's method of that name.

    Raises:
      UserError: the model cannot do it, or not with these records.
    """

    model: models.Model
    command: str
    records: Records
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.model.check(self.method, **self.options)
        if self.command == "fill-mask":
            self.model.check_masks(fields for _, fields in self.records)

    @property
    def method(self) -> str:
        return self.command.replace("-", "_")

    @property
    def identity(self) -> dict[str, Any]:
        """All that the results depend on, but for the last digits."""
        return {
            "command": self.command,
            "input": self.records.sha256,
            "model": self.model.fingerprint,
            "max_seq_length": self.model.max_seq_length,
            "dtype": self.model.config.dtype,
            **self.options,
        }

    def results(self, done: int = 0) -> Iterator[tuple[Record, Any]]:
        """(record, its result) of the records behind the first `done`."""
        ones, others = itertools.tee(itertools.islice(self.records, done, None))
        found = self.model.predictions(
            self.method,
            (fields for _, fields in others),
            self.records.count - done,
            **self.options,
        )
        return zip((record for record, _ in ones), found, strict=True)

    def lines(self, done: int = 0) -> Iterator[str]:
        """Records with their results as JSON."""
        for record, result in self.results(done):
            if self.command == "embed":
                result = {"embedding": result.tolist()}
            yield json.dumps(record | result, ensure_ascii=False)

    def write(self, output: str) -> None:
        """Writes the results, by the file's suffix; see `outputs.whole`.

        Raises:
          UserError: there are no texts to make vectors of.
        """
        if self.command != "embed" or epath.Path(output).suffix not in vectors.FORMATS:
            with outputs.whole(output, self.identity) as partial:
                partial.write(f"{line}\n".encode() for line in self.lines(partial.done))
            return
        if not self.records.count:
            raise UserError(f"{self.records.name} has no texts")
        vectors.write(
            output,
            self.identity,
            lambda done: (vector for _, vector in self.results(done)),
            (record for record, _ in self.records),
            self.records.count,
            self.model.config.hidden_size,
        )
