"""Stage 2: from the token store to shards of examples.

A shard is a pure function of (store, options, split, shard index), so it does not matter who
computes it, when, or how often.

Shapes: E examples, P spans (runs of tokens of the store), L positions, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.data import masking
from bert_jax.data.records import NO_NEXT_SENTENCE_LABEL, example_dtype
from bert_jax.data.tokenizer import Tokenizer
from data_prep.examples import pairing
from data_prep.examples.token_store import Store

# Examples that are shuffled and masked together: a few MB, a multiple of EXAMPLES_PER_RECORD.
BLOCK_EXAMPLES = 8192
HASHED_DOCUMENTS = 1 << 20  # at once, to find those of a shard
# Purposes of random streams, so that no two draw the same numbers.
_SHARD, _ORDER, _COPY, _PAIR, _TRUNCATE, _SHUFFLE, _MASK = range(7)


@dataclasses.dataclass(frozen=True)
class ShardOptions:
    """What determines the examples, given a store.

    Attributes:
      objective: 'nsp', 'sop', 'full_sentences' or 'doc_sentences'.
      max_seq_length: positions of an example; L.
      short_seq_prob: share of documents whose pairs aim at a random shorter length.
      dupe_factor: how often each document is used, with new pairs and masks each time.
      weights: for each source, a factor on dupe_factor; a fraction is realised by chance. Random
        Bs are drawn by it too.
      masking: the masks to write, or None for unmasked examples.
      seed: of everything random.
    """

    objective: str
    max_seq_length: int
    short_seq_prob: float
    dupe_factor: int
    weights: tuple[float, ...]
    masking: masking.MaskingConfig | None
    seed: int


class _Spans(NamedTuple):
    """Examples as runs of tokens of the store.

    Attributes:
      start_P, length_P: the runs, example after example.
      spans_E: how many runs an example has.
      label_E: its next_sentence_label.
      dropped_E: tokens that truncation took from it.
    """

    start_P: np.ndarray
    length_P: np.ndarray
    spans_E: np.ndarray
    label_E: np.ndarray
    dropped_E: np.ndarray


def count_shards(num_shards: int, num_copies: float) -> int:
    """At most `num_shards`; a small corpus gets fewer, so that none is likely to be empty."""
    return int(max(1, min(num_shards, num_copies // 32)))


def _mix(*values: int | np.ndarray) -> np.ndarray:
    """A uniform uint64 from counters (the finaliser of SplitMix64, applied once a value)."""
    with np.errstate(over="ignore"):
        state = np.asarray(0x9E3779B97F4A7C15, np.uint64)
        for value in values:
            state = (state ^ np.asarray(value, np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
        return state


def _generator(*key: int) -> np.random.Generator:
    """A generator of its own for a tuple of counters, such as (seed, purpose, shard, block)."""
    # As uint64: of a large and a small integer numpy makes floats, which lose the low bits.
    words = np.array([_mix(*key), _mix(1, *key)], np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


class _PairGenerator:
    """Uniform numbers keyed by (document, duplicate), several times cheaper than new generators."""

    def __init__(self, seed: int):
        # Of a large seed this keeps 53 bits; _generator would make other data sets of all seeds.
        self._bits = np.random.Philox(key=[seed, _PAIR])
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def uniforms(self, document: int, duplicate: int, shape: tuple[int, int]) -> np.ndarray:
        self._state["state"]["counter"][:] = (0, 0, document, duplicate)
        self._bits.state = self._state  # its buffer is empty: the first draw starts a new block
        return self._generator.random(shape)


def shard_entries(
    store: Store, options: ShardOptions, shard: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The (document, duplicate) pairs of a shard in visiting order, each an int64 array.

    Every pair goes to the shard and to the place that a hash of (seed, document, duplicate) says.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    first = 0
    for source, num_documents in sorted(store.documents_of_source.items()):
        copies = options.dupe_factor * options.weights[source]
        certain = int(copies)
        last = first + num_documents
        for duplicate in range(-int(-copies // 1)):
            # In parts, so that memory does not grow with the corpus.
            for begin in range(first, last, HASHED_DOCUMENTS):
                end = min(begin + HASHED_DOCUMENTS, last)
                document_D = np.arange(begin, end, dtype=np.uint64)
                chosen_D = _mix(options.seed, _SHARD, document_D, duplicate) % np.uint64(count)
                chosen_D = chosen_D == np.uint64(shard)
                if duplicate >= certain:
                    chance = _mix(options.seed, _COPY, document_D, duplicate) / 2.0**64
                    chosen_D &= chance < copies - certain
                chosen = document_D[chosen_D]
                found.append((chosen, np.full(len(chosen), duplicate, np.uint64)))
        first = last
    documents = np.concatenate([np.zeros(0, np.uint64)] + [pair[0] for pair in found])
    duplicates = np.concatenate([np.zeros(0, np.uint64)] + [pair[1] for pair in found])
    order = np.argsort(_mix(options.seed, _ORDER, documents, duplicates), kind="stable")
    return documents[order].astype(np.int64), duplicates[order].astype(np.int64)


def _pairs(
    store: Store, options: ShardOptions, tokenizer: Tokenizer, shard: int, count: int
) -> Iterator[_Spans]:
    """Yields pairs of segments, truncated, a few hundred at a time."""
    budget = options.max_seq_length - tokenizer.num_special(2)
    balance = pairing.IsNextBalance()
    numbers = _PairGenerator(options.seed)
    sources = sorted(store.documents_of_source)
    partners = pairing.Partners(
        [store.documents_of_source[s] for s in sources], [options.weights[s] for s in sources]
    )
    truncation = _generator(options.seed, _TRUNCATE, shard)
    rows: list[tuple[int, int, int, int, int]] = []  # A start, length, B start, length, label
    documents, duplicates = shard_entries(store, options, shard, count)
    for document, duplicate in zip(documents.tolist(), duplicates.tolist(), strict=True):
        first, last = store.document_offsets[document : document + 2].tolist()
        offsets = store.sentence_offsets(first, last).tolist()
        uniform_S4 = numbers.uniforms(document, duplicate, (last - first + 1, 4)).tolist()
        coin, length, _, _ = uniform_S4.pop()
        target = pairing.target_length(budget, options.short_seq_prob, coin, length)
        if options.objective == "sop":
            halves = pairing.sentence_order_chunks(offsets, target, uniform_S4)
            for i, (begin, cut, stop) in enumerate(halves):
                a, b = (begin, cut - begin), (cut, stop - cut)
                if uniform_S4[i][1] < 0.5:
                    rows.append((*a, *b, pairing.IN_ORDER))
                else:
                    rows.append((*b, *a, pairing.SWAPPED))
        else:
            chunks = pairing.next_sentence_chunks(offsets, target, uniform_S4, balance)
            for i, (start, middle, end) in enumerate(chunks):
                if end is not None:
                    rows.append((start, middle - start, middle, end - middle, pairing.IS_NEXT))
                    continue
                which, where = uniform_S4[i][2:]
                b_start, b_end = _random_segment(
                    store, partners.draw(document, which), where, target - (middle - start)
                )
                rows.append((start, middle - start, b_start, b_end - b_start, pairing.IS_RANDOM))
        if len(rows) >= 1024:
            yield _truncated(truncation, rows, budget)
            rows = []
    if rows:
        yield _truncated(truncation, rows, budget)


def _random_segment(store: Store, document: int, uniform: float, length: int) -> tuple[int, int]:
    """Token offsets of B: from a random sentence of `document` on."""
    first, last = store.document_offsets[document : document + 2].tolist()
    first += int(uniform * (last - first))
    # A sentence has a token at least, so that many sentences always suffice.
    offsets = store.sentence_offsets(first, min(last, first + max(length, 1))).tolist()
    return offsets[0], pairing.filled_end(offsets, length)


def _truncated(rng: np.random.Generator, rows: Sequence[tuple[int, ...]], budget: int) -> _Spans:
    row_E5 = np.array(rows, np.int64)
    cut = pairing.truncate_pairs(rng, row_E5[:, 1], row_E5[:, 3], budget)
    return _Spans(
        start_P=np.stack([row_E5[:, 0] + cut.a_front, row_E5[:, 2] + cut.b_front], 1).ravel(),
        length_P=np.stack([cut.a_length, cut.b_length], 1).ravel(),
        spans_E=np.full(len(rows), 2),
        label_E=row_E5[:, 4],
        dropped_E=row_E5[:, 1] + row_E5[:, 3] - cut.a_length - cut.b_length,
    )


def _packed(
    store: Store, options: ShardOptions, tokenizer: Tokenizer, shard: int, count: int
) -> Iterator[_Spans]:
    """Yields single-segment examples of whole sentences, a few hundred at a time."""
    packer = pairing.SentencePacker(
        options.max_seq_length - tokenizer.num_special(1),
        cross_documents=options.objective == "full_sentences",
    )
    examples: list[list[tuple[int, int]]] = []
    documents, _ = shard_entries(store, options, shard, count)
    for document in documents.tolist():
        first, last = store.document_offsets[document : document + 2].tolist()
        examples += packer.add_document(store.sentence_offsets(first, last).tolist())
        if len(examples) >= 1024:
            yield _unlabelled(examples)
            examples = []
    examples += packer.finish()
    if examples:
        yield _unlabelled(examples)


def _unlabelled(examples: list[list[tuple[int, int]]]) -> _Spans:
    span_P2 = np.array([span for example in examples for span in example], np.int64)
    return _Spans(
        start_P=span_P2[:, 0],
        length_P=span_P2[:, 1],
        spans_E=np.array([len(example) for example in examples]),
        label_E=np.full(len(examples), NO_NEXT_SENTENCE_LABEL),
        dropped_E=np.zeros(len(examples), np.int64),
    )


def assemble(
    tokens: np.ndarray, spans: _Spans, tokenizer: Tokenizer, max_seq_length: int, dtype: np.dtype
) -> np.ndarray:
    """Lays tokens out as the tokenizer does, padded; returns a struct array [E].

    Pairs as its layout of two segments, other examples as that of one, with a separator between two
    spans: [CLS] span [SEP] span [SEP] ….

    Args:
      tokens: the ids of all spans, one after another.
      spans: lengths and labels; an example with a label has two spans, segments A and B.
      tokenizer: for the special tokens.
      max_seq_length: L.
      dtype: records.example_dtype.
    """
    E = len(spans.spans_E)
    has_label_E = spans.label_E != NO_NEXT_SENTENCE_LABEL
    prefix, suffix = tokenizer.prefix_ids, tokenizer.suffix_ids
    middle = tokenizer.middle_ids if has_label_E.all() else [tokenizer.separator_id]
    example_P = np.repeat(np.arange(E), spans.spans_E)
    end_P = np.cumsum(spans.length_P + len(middle))
    first_P = np.cumsum(spans.spans_E) - spans.spans_E
    before_E = (end_P - spans.length_P - len(middle))[first_P]
    start_P = len(prefix) + end_P - spans.length_P - len(middle) - before_E[example_P]
    length_E = np.add.reduceat(spans.length_P + len(middle), first_P) - len(middle)
    num_tokens_E = len(prefix) + length_E + len(suffix)
    flat_start_P = example_P * max_seq_length + start_P
    token_start_P = np.cumsum(spans.length_P) - spans.length_P
    where = np.repeat(flat_start_P - token_start_P, spans.length_P) + np.arange(len(tokens))
    input_ids_EL = np.full((E, max_seq_length), tokenizer.pad_id, tokens.dtype)
    input_ids_EL[:, : len(prefix)] = prefix
    flat = input_ids_EL.reshape(-1)
    flat[where] = tokens
    is_last_P = np.append(example_P[1:] != example_P[:-1], True)
    for i, token in enumerate(middle):
        flat[(flat_start_P + spans.length_P + i)[~is_last_P]] = token
    for i, token in enumerate(suffix):
        flat[(flat_start_P + spans.length_P + i)[is_last_P]] = token
    examples = np.zeros(E, dtype)
    examples["input_ids"] = input_ids_EL
    examples["num_tokens"] = num_tokens_E
    examples["next_sentence_label"] = spans.label_E
    second_start_E = len(prefix) + spans.length_P[first_P] + len(middle)
    examples["second_start"] = np.where(has_label_E, second_start_E, num_tokens_E)
    return examples


class ShardExamples:
    """Iterates over a shard's examples in blocks and counts what went by.

    Attributes (after iteration):
      counts: examples, example_tokens (with special ones), label_0 and label_1 (the
        next_sentence_label), masked, truncated_examples, truncated_tokens.
      token_counts_V: how often each id occurs in the examples, before masking.
      num_tokens_E: uint16, the length of each example, in order.
    """

    def __init__(
        self,
        store: Store,
        options: ShardOptions,
        tokenizer: Tokenizer,
        shard: int,
        count: int,
        split_key: int,
    ):
        """`split_key` keeps the random numbers of the splits apart."""
        self._store, self._tokenizer = store, tokenizer
        self._options = dataclasses.replace(options, seed=int(_mix(options.seed, split_key)))
        self._shard, self._count = shard, count
        config = options.masking
        self.dtype = example_dtype(
            options.max_seq_length,
            tokenizer.vocab_size,
            config.max_predictions_per_seq if config else 0,
        )
        self.counts: dict[str, int] = dict.fromkeys(
            (
                "examples",
                "example_tokens",
                "label_0",
                "label_1",
                "masked",
                "truncated_examples",
                "truncated_tokens",
            ),
            0,
        )
        self.token_counts_V = np.zeros(tokenizer.vocab_size, np.int64)
        self.num_tokens_E = np.zeros(0, np.uint16)

    def __iter__(self) -> Iterator[np.ndarray]:
        waiting = np.zeros(0, self.dtype)
        block = 0
        for examples in self._unmasked():
            waiting = np.concatenate([waiting, examples])
            while len(waiting) >= BLOCK_EXAMPLES:
                yield self._finished(waiting[:BLOCK_EXAMPLES], block)
                waiting = waiting[BLOCK_EXAMPLES:]
                block += 1
        if len(waiting):
            yield self._finished(waiting, block)

    def _unmasked(self) -> Iterator[np.ndarray]:
        is_pair = self._options.objective in ("nsp", "sop")
        make = _pairs if is_pair else _packed
        assembled = functools.partial(
            assemble,
            tokenizer=self._tokenizer,
            max_seq_length=self._options.max_seq_length,
            dtype=self.dtype,
        )
        for spans in make(self._store, self._options, self._tokenizer, self._shard, self._count):
            tokens = self._store.tokens(spans.start_P.tolist(), spans.length_P.tolist())
            self.token_counts_V += np.bincount(tokens, minlength=len(self.token_counts_V))
            self.counts["truncated_examples"] += int((spans.dropped_E > 0).sum())
            self.counts["truncated_tokens"] += int(spans.dropped_E.sum())
            yield assembled(tokens, spans)

    def _finished(self, examples: np.ndarray, block: int) -> np.ndarray:
        """Shuffles a block, masks it and counts it."""
        key = (self._shard, block)
        seed, tokenizer, counts = self._options.seed, self._tokenizer, self.counts
        examples = examples[_generator(seed, _SHUFFLE, *key).permutation(len(examples))]
        self.num_tokens_E = np.append(self.num_tokens_E, examples["num_tokens"])
        counts["examples"] += len(examples)
        counts["example_tokens"] += int(examples["num_tokens"].sum(dtype=np.int64))
        for label in (0, 1):
            counts[f"label_{label}"] += int((examples["next_sentence_label"] == label).sum())
        if self._options.masking is None:
            return examples
        masked = masking.mask_tokens(
            _generator(seed, _MASK, *key),
            examples["input_ids"],
            examples["num_tokens"],
            self._options.masking,
            mask_id=tokenizer.mask_id,
            is_special_V=tokenizer.is_special_V,
            is_continuation_V=tokenizer.is_continuation_V,
        )
        examples["input_ids"] = masked.input_ids_BL
        examples["masked_lm_positions"] = masked.positions_BM
        examples["masked_lm_ids"] = masked.ids_BM
        examples["num_masked"] = masked.num_masked_B
        counts["masked"] += int(masked.num_masked_B.sum())
        return examples
