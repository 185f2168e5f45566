"""Are the files of a data set those that were written, and what is in its shards?"""

import dataclasses
import functools

from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import Manifest, Shard
from bert_jax.data.tokenizer import Tokenizer
from data_prep.checking.tally import Tally, read_examples, tally_examples
from data_prep.examples import writers


@dataclasses.dataclass(frozen=True)
class Subject:
    """What measuring a shard needs; sent to the worker processes."""

    data_dir: str
    manifest: Manifest

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(epath.Path(self.data_dir) / "tokenizer")


def measure_shard(subject: Subject, shard: Shard) -> Tally | str:
    """Tallies one shard; a string says what is wrong with its file."""
    path = epath.Path(subject.data_dir) / shard.name
    if not path.exists():
        return f"{shard.name} is missing"
    if writers.sha256(path) != shard.sha256:
        return f"{shard.name} has changed: its SHA-256 is not the manifest's"
    tally = Tally()
    for examples in read_examples(path, subject.manifest.dtype):
        tally += tally_examples(examples, subject.manifest, subject.tokenizer)
    if tally.examples != shard.num_examples:
        return (
            f"{shard.name} holds {tally.examples} examples, the manifest says {shard.num_examples}"
        )
    return tally


def file_problems(subject: Subject) -> dict[str, str]:
    """What is wrong, by the name of the file; the shards are left out."""
    directory = epath.Path(subject.data_dir)
    problems = {}
    for name, sha256 in subject.manifest.statistics["files"].items():
        if not (directory / name).exists():
            problems[name] = f"{name} is missing"
        elif writers.sha256(directory / name) != sha256:
            problems[name] = f"{name} has changed: its SHA-256 is not the manifest's"
    try:
        if subject.tokenizer.fingerprint != subject.manifest.tokenizer_fingerprint:
            problems["tokenizer"] = "tokenizer/ is not the tokenizer that the ids were made with"
    except UserError as error:
        raise UserError(f"the data set's copy of its tokenizer is unusable: {error}") from None
    return problems
