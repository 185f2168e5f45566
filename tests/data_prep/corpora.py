"""Synthetic text for the tests (made-up words, real sentence ends), and what was made of text."""

import dataclasses
import json
import random

from data_prep.sources import corpus, parsing

WORDS = [f"{a}{b}{c}" for a in "bcdfgklmnprst" for b in "aeiou" for c in ("", "n", "rt", "sk")]


def make_documents(count: int, seed: int = 0, max_sentences: int = 12) -> list[str]:
    """Documents of 1 to `max_sentences` sentences of 3 to 40 words, two in three a paragraph."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        sentences = []
        for _ in range(rng.randint(1, max_sentences)):
            words = rng.choices(WORDS, k=rng.randint(3, 40))
            sentences.append(" ".join(words).capitalize() + ".")
        documents.append("".join(s + rng.choice([" ", " ", "\n"]) for s in sentences).strip())
    return documents


def write_jsonl(path, documents) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def read(
    *sources, field="text", max_decode_errors=parsing.MAX_DECODE_ERRORS, document_per_line=False
):
    """All documents of some sources, and the sums of what was counted."""
    documents, parsed = [], []
    for part in corpus.list_parts([str(s) for s in sources], field, document_per_line):
        for unit in corpus.read_units(part):
            texts, counts = parsing.parse_unit(unit, max_decode_errors)
            documents += texts
            parsed.append(dataclasses.astuple(counts))
    return documents, parsing.ParseCounts(*map(sum, zip(*parsed, strict=True)))


def jsonl(texts):
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))


def shas(manifest):
    shards = {shard.name: shard.sha256 for shards in manifest.splits.values() for shard in shards}
    return shards | manifest.statistics["files"]
