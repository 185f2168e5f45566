"""Are the files of a data set those that were written, and what is in its shards?"""

import dataclasses
import functools

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import TOKENIZER, Manifest, Shard, sha256
from bert_jax.data.tokenizer import Tokenizer
from data_prep.checking.tally import Tally, read_examples, tally_examples

# Which format version 1 has no checksums of: its tokenizers are WordPiece.
_FILES_OF_VERSION_1 = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What measuring a shard needs; sent to the worker processes."""

    data_dir: str
    manifest: Manifest

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(epath.Path(self.data_dir) / TOKENIZER)


def measure_shard(subject: Subject, shard: Shard) -> Tally | str:
    """Tallies one shard; a string says what is wrong with its file."""
    path = epath.Path(subject.data_dir) / shard.name
    if not path.exists():
        return f"{shard.name} is missing"
    if sha256(path) != shard.sha256:
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
    """What is wrong, by the name of the file; the contents of shards are another function's.

    The name "tokenizer" stands for all of its files together.
    """
    manifest = subject.manifest
    problems = dict(manifest.problems(subject.data_dir, manifest.splits))
    written = files.sizes(epath.Path(subject.data_dir) / TOKENIZER)
    for name in _FILES_OF_VERSION_1 if manifest.format_version == 1 else ():
        if name not in written:
            problems.setdefault(f"{TOKENIZER}/{name}", f"{TOKENIZER}/{name} is missing")
    try:
        is_another = subject.tokenizer.fingerprint != manifest.tokenizer_fingerprint
    except UserError as error:
        problems[TOKENIZER] = f"{TOKENIZER}/ is unusable, so no example was read: {error}"
        return problems
    if is_another and not any(name.startswith(f"{TOKENIZER}/") for name in problems):
        problems[TOKENIZER] = f"{TOKENIZER}/ is not the tokenizer that the ids were made with"
    return problems
