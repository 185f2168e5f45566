"""What is measured of a data set, and the range in which each measure is healthy.

What is drawn by chance (IsNext, replacements) may be off by four standard errors, so that small
data sets pass.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from etils import epath

from bert_jax.data.masking import MaskingConfig
from bert_jax.data.records import Manifest
from data_prep.checking.tally import Tally
from data_prep.sources import parsing

# Shares of characters that lose a mark: from the first on a remark says so, from the second on it
# is no longer a matter of accents.
_SOME_STRIPPED, MAX_STRIPPED = 0.005, 0.05
# A corpus of no more documents is none to pretrain on, or was not parted into them.
_FEW_DOCUMENTS = 100


@dataclasses.dataclass(frozen=True)
class Measure:
    """One line of the report.

    Attributes:
      split: 'train', 'validation' or 'data set'.
      name: what is measured.
      value: what was found.
      low, high: the expected range, ends included; None where it is open.
      advice: what a value outside the range means and what to do; without a range, a remark.
    """

    split: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    advice: str = ""

    @property
    def is_healthy(self) -> bool:
        return (self.low is None or self.value >= self.low) and (
            self.high is None or self.value <= self.high
        )

    @property
    def expected(self) -> str:
        if self.low is None and self.high is None:
            return ""
        if self.low == self.high:
            return f"{self.low:g}"
        if self.high is None:
            return f"at least {self.low:.4g}"
        if self.low is None:
            return f"at most {self.high:.4g}"
        return f"{self.low:.4g} … {self.high:.4g}"

    @property
    def remark(self) -> str:
        """The advice, where it applies."""
        return "" if self.is_healthy and self.expected else self.advice


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _near(target: float, tolerance: float, count: int) -> tuple[float, float]:
    """The range around a share, no narrower than four standard errors of `count` draws."""
    slack = max(tolerance, 4 * (target * (1 - target) / max(count, 1)) ** 0.5)
    return max(target - slack, 0.0), min(target + slack, 1.0)


def of_examples(split: str, tally: Tally, manifest: Manifest) -> Iterator[Measure]:
    arguments = manifest.arguments
    yield Measure(split, "examples", tally.examples, 1)
    yield Measure(
        split,
        "malformed examples",
        tally.malformed,
        0,
        0,
        "wrong special tokens, padding, positions or ids: this is a defect, please report it",
    )
    yield Measure(
        split,
        "fill (share of positions that are not padding)",
        _share(tally.tokens, tally.examples * arguments["max_seq_length"]),
        0.4,
        1,
        "short documents waste computation: lower --max_seq_length, or --objective=full_sentences",
    )
    labelled = int(tally.labels[:2].sum())
    if arguments["objective"] in ("nsp", "sop"):
        what = "IsNext" if arguments["objective"] == "nsp" else "in order"
        yield Measure(
            split,
            f"share of {what} pairs",
            _share(int(tally.labels[0]), labelled),
            *_near(0.5, 0.01, labelled),
            "most chunks have one sentence and cannot be IsNext: are there sentence ends in the "
            "text? (--sentence_per_line, --language), or use --objective=full_sentences",
        )
    if not manifest.is_static:
        return
    config = MaskingConfig.from_arguments(arguments)
    yield _mask_rate(split, tally, config)
    is_token_masking = not config.whole_word and config.max_ngram == 1
    yield Measure(
        split,
        "masked / intended by the rate and the cap",
        _share(tally.masked, tally.wanted),
        0.99 if is_token_masking else 0.85,
        1,
        "too few tokens that can be masked: very short examples, or long words with a low cap",
    )
    for name, count, target in (
        ("masked tokens replaced by [MASK]", tally.became_mask, config.mask_fraction),
        ("masked tokens replaced at random", tally.became_other, config.random_fraction),
    ):
        low, high = _near(target, 0.005, tally.masked)
        yield Measure(split, name, _share(count, tally.masked), low, high, "a defect: report it")
    for name, count in (
        ("special tokens masked", tally.special_masked),
        ("special tokens drawn as replacement", tally.special_drawn),
    ):
        yield Measure(split, name, count, 0, 0, "a defect: report it")


def _mask_rate(split: str, tally: Tally, config: MaskingConfig) -> Measure:
    """Where the cap holds the rate down, which may be intended, a remark says so; no range."""
    rate = _share(tally.masked, tally.tokens)
    length_N = np.arange(len(tally.lengths))
    uncapped_N = np.maximum(np.rint(length_N * config.masked_lm_prob), 1)
    uncapped = float((tally.lengths * uncapped_N).sum())
    if tally.wanted < 0.9 * uncapped:
        low = None
        advice = (
            f"the cap of {config.max_predictions_per_seq} predictions per example keeps it far "
            f"below --masked_lm_prob={config.masked_lm_prob:g}: if that is not intended, build "
            "without --max_predictions_per_seq"
        )
    else:
        low = 0.75 * _share(uncapped, tally.tokens)
        advice = "far below --masked_lm_prob: see the next measure"
    return Measure(split, "mask rate (of all tokens)", rate, low, None, advice)


def of_text(split: str, manifest: Manifest) -> Iterator[Measure]:
    """What the build counted in a split's text; since format version 2 more than before."""
    counts = manifest.statistics["splits"][split]
    yield Measure(split, "documents", counts["documents"], 1)
    if "document_lengths" in counts:
        median = _median(counts["document_lengths"])
        yield Measure(split, "tokens per document (median, about)", median)
    long_words = counts.get("long_words", 0)
    yield Measure(
        split,
        "[UNK] rate",
        _share(counts["unknown_tokens"] - long_words, counts["tokens"]),
        0,
        0.01,
        "the vocabulary lacks letters of this text: train one (python -m data_prep.vocab, with a "
        "larger --alphabet_size for Chinese, Japanese or many scripts)",
    )
    yield Measure(
        split,
        "share of words too long for the tokenizer",
        _share(long_words, counts["words"]),
        0,
        0.001,
        "each is one [UNK]: train a vocabulary with a larger --max_word_length, or cut them (a "
        "sequence of letters without blanks, such as DNA, is cut into words of equal length)",
    )
    yield Measure(
        split,
        "pieces per word",
        _share(counts["tokens"], counts["words"]),
        1,
        2,
        "the vocabulary does not suit this text: train or extend one (python -m data_prep.vocab)",
    )
    yield Measure(
        split,
        "share of pair tokens lost to truncation",
        _share(counts["truncated_tokens"], counts["truncated_tokens"] + counts["example_tokens"]),
        0,
        0.25,
        "sentences are long for --max_seq_length: raise it, or are sentence ends not found?",
    )


def _median(lengths: Sequence[int]) -> float:
    """Of documents by powers of two of their length: [0, 2, 2] -> 4.0, between 2 … 3 and 4 … 7."""
    half, seen = sum(lengths) / 2, 0
    for exponent, count in enumerate(lengths):
        if count and seen + count >= half:
            return 2.0 ** (exponent + (half - seen) / count)
        seen += count
    return 0.0


def of_documents(
    data_dir: str, manifest: Manifest, corrupted: Collection[str]
) -> Iterator[Measure]:
    hashes = {}
    for split in manifest.splits:
        name = f"document_hashes-{split}.npy"
        if name not in corrupted:
            with (epath.Path(data_dir) / name).open("rb") as file:
                hashes[split] = np.load(file)
    distinct = {split: np.unique(hash_D) for split, hash_D in hashes.items()}
    if "train" in hashes:
        yield Measure(
            "train",
            "share of documents that repeat another exactly",
            1 - _share(len(distinct["train"]), len(hashes["train"])),
            0,
            0.05,
            "the corpus has duplicates, which are learnt by heart: build with --deduplicate",
        )
    if {"train", "validation"} <= distinct.keys():
        shared = np.isin(distinct["validation"], distinct["train"])
        yield Measure("data set", "documents both in train and validation", int(shared.sum()), 0, 0)
    source_bytes = manifest.statistics["source_bytes"]
    most = manifest.arguments["max_decode_errors"]
    if most:  # the build lets a few through whatever their share
        most = min(1.0, most + _share(parsing.MAX_STRAY_BYTES, source_bytes))
    yield Measure(
        "data set",
        "share of bytes that are not UTF-8",
        _share(manifest.statistics["decode_errors"], source_bytes),
        0,
        most,
        "the input has another encoding: convert it with iconv",
    )
    yield from _marks(manifest)
    yield from _unparted(manifest)


def _marks(manifest: Manifest) -> Iterator[Measure]:
    statistics = manifest.statistics
    if "characters" not in statistics:  # format version 1
        return
    share = _share(statistics["stripped_characters"], statistics["characters"])
    advice = (
        "the tokenizer strips marks that are letters in Hindi, Thai, Japanese and others, so that "
        "different words become one: train a vocabulary with --no-strip_accents"
    )
    yield Measure(
        "data set",
        "share of characters that lose a mark",
        share,
        None,
        MAX_STRIPPED if share > MAX_STRIPPED else None,
        advice if share > _SOME_STRIPPED else "",
    )


def _unparted(manifest: Manifest) -> Iterator[Measure]:
    """Files that may be lists of documents, each read as one; whole books look the same."""
    statistics = manifest.statistics
    if files := statistics.get("unparted_files", 0):
        lines = statistics["unparted_lines"] / files
        documents = sum(counts["documents"] for counts in statistics["splits"].values())
        is_nearly_all = documents <= _FEW_DOCUMENTS and files + statistics["cut_documents"] >= (
            documents / 2
        )
        yield Measure(
            "data set",
            "text files without a blank line, each one document",
            files,
            None,
            0 if is_nearly_all else None,
            f"they have {lines:,.0f} lines on average: where each line is a document, build with "
            "--document_per_line",
        )
    if cut := statistics.get("cut_documents", 0):
        yield Measure(
            "data set",
            "cuts in documents of over 16 MB",
            cut,
            advice="where each line is a document, build with --document_per_line",
        )
