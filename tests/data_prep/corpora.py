"""Synthetic text for the tests: made-up words, real sentence ends."""

import json
import random

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
