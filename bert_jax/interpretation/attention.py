"""What every head attends to: its probabilities in one byte each, and what the head does.

L tokens, H heads, N layers. Kovaleva et al. 2019 (https://arxiv.org/abs/1908.08593) and Clark et
al. 2019 (https://arxiv.org/abs/1906.04341) found the patterns that heads are described by.
"""

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.cli import UserError
from bert_jax.inference import encoding
from bert_jax.inference.forward import Forward
from bert_jax.inference.predictions import Record

# "[CLS]" and "[SEP]" stand for the tokenizer's own names of them.
PATTERNS = ("previous token", "next token", "[CLS]", "[SEP]", "same word", "itself", "broad")
_DESCRIBED = 0.4  # share of a head's attention that names it
MOST_BYTES = 14_000_000  # of all probabilities together: a page stays below 15 MB
# Probabilities below cut / 255 are shown as 0; larger cuts make smaller pages.
_CUTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def report(model: Forward, records: Sequence[Record], name: str) -> dict[str, Any]:
    """See `bert_jax.explain.attention`."""
    texts, levels, shares = [], [], []
    for record in records:
        found = encoding.encode(model, [record], False, True)
        if not found.attentions:
            raise UserError(f"a {model.architecture} model gives no attention probabilities")
        probs_NHLL = np.stack([x[0] for x in found.attentions])
        ids_L, segments_L = found.input_ids[0], found.token_type_ids[0]
        texts.append(
            {
                "tokens": [_shown(model, int(i)) for i in ids_L],
                "segments": segments_L.tolist(),
            }
        )
        levels.append(np.rint(probs_NHLL * 255).astype(np.uint8))
        start_id, separator_id = model.tokenizer.start_id, model.tokenizer.separator_id
        shares.append(pattern_shares(probs_NHLL, ids_L, start_id, separator_id))
    cut, packed = pack(levels)
    for text, content in zip(texts, packed, strict=True):
        text["levels"] = content
    shares_NHP = np.mean(shares, 0)
    return {
        "kind": "attention",
        "model": name,
        "layers": shares_NHP.shape[0],
        "heads": shares_NHP.shape[1],
        "cut": cut / 255,
        "patterns": [*PATTERNS],
        "shares": np.round(shares_NHP, 3).tolist(),
        "descriptions": [[describe(x) for x in layer] for layer in shares_NHP],
        "texts": texts,
    }


def _shown(model: Forward, token: int) -> str:
    """'##s' as it is, and of byte-level and SentencePiece's pieces what they stand for."""
    tokenizer = model.tokenizer
    return tokenizer.vocab[token] if tokenizer.kind == "wordpiece" else tokenizer.surface(token)


def pattern_shares(
    probs_NHLL: np.ndarray, ids_L: np.ndarray, start_id: int, separator_id: int
) -> np.ndarray:
    """The mean share of attention that goes to each of PATTERNS, float32[N, H, P].

    Of what tokens other than [CLS] and [SEP] attend to; "broad" is the entropy as a share of the
    highest there is. A token may count for several patterns.
    """
    length = len(ids_L)
    place = np.arange(length)
    same = ids_L[:, None] == ids_L[None]
    itself = np.eye(length, dtype=bool)
    masks = [
        place[None] == place[:, None] - 1,
        place[None] == place[:, None] + 1,
        np.broadcast_to(ids_L == start_id, same.shape),
        np.broadcast_to(ids_L == separator_id, same.shape),
        same & ~itself,
        itself,
    ]
    read = np.flatnonzero((ids_L != start_id) & (ids_L != separator_id))
    if not len(read):
        read = place
    rows = probs_NHLL[:, :, read]
    shares = [(rows * mask[read]).sum(-1).mean(-1) for mask in masks]
    entropy = -(rows * np.log(np.maximum(rows, 1e-30))).sum(-1).mean(-1)
    return np.stack([*shares, entropy / np.log(max(length, 2))], -1)


def describe(shares_P: np.ndarray) -> str:
    """'previous token 83 %': the pattern with most of the attention, else "broad" or "mixed"."""
    *of_keys, broad = shares_P
    best = int(np.argmax(of_keys))
    if of_keys[best] >= _DESCRIBED:
        return f"{PATTERNS[best]} {of_keys[best]:.0%}".replace("%", " %")
    kind = "broad" if broad >= 0.7 else "mixed"
    return f"{kind}, entropy {broad:.0%}".replace("%", " %")


def pack(levels: Sequence[np.ndarray], most: int = MOST_BYTES) -> tuple[int, list[str]]:
    """Bytes, compressed and as base64, in at most `most` characters together.

    Returns:
      the cut below which levels became 0, and a text each.

    Raises:
      UserError: they are too many for any cut.
    """
    for cut in _CUTS:
        packed = [
            base64.b64encode(zlib.compress(np.where(x < cut, 0, x).tobytes(), 6)).decode()
            for x in levels
        ]
        if sum(map(len, packed)) <= most:
            return cut, packed
    raise UserError(
        f"the attention of {len(levels)} texts is too much for one page: give fewer (--limit), or "
        "shorter ones (--max_seq_length)"
    )
