"""The options of a data set: what determines its bytes; and the flags that set them."""

import argparse
import dataclasses
import json
import os
import re
from typing import Any

from bert_jax.cli import UserError
from bert_jax.data.masking import MaskingConfig, default_max_predictions
from data_prep.examples.shards import ShardOptions
from data_prep.sources import languages, parsing

OBJECTIVES = ("nsp", "sop", "full_sentences", "doc_sentences")
FORMATS = ("array_record", "tfrecord")
MAX_USES = 10**6  # of a document; more are a slip of the pen


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What determines a data set. Flags of the same names say what each one means.

    Attributes:
      max_predictions_per_seq: None is all that masked_lm_prob asks for in a full example: 20 for
        0.15 of 128 tokens, 77 for 0.15 of 512.
    """

    input: tuple[str, ...]
    tokenizer: str
    field: str = "text"
    weights: tuple[float, ...] = ()
    language: str = "en"
    sentence_per_line: bool = False
    document_per_line: bool = False
    max_decode_errors: float = parsing.MAX_DECODE_ERRORS
    deduplicate: bool = False
    objective: str = "nsp"
    max_seq_length: int = 128
    short_seq_prob: float = 0.1
    dupe_factor: int = 5
    masking: str = "static"
    masked_lm_prob: float = 0.15
    max_predictions_per_seq: int | None = None
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    whole_word_mask: bool = False
    max_ngram: int = 1
    validation_fraction: float = 0.01
    num_shards: int = 16
    format: str = "array_record"
    seed: int = 12345

    def checked(self) -> "BuildOptions":
        """Returns the options with defaults filled in; raises UserError for impossible ones."""
        required = {
            "max_seq_length": (5 <= self.max_seq_length < 2**16, "between 5 and 65535"),
            "short_seq_prob": (0 <= self.short_seq_prob <= 1, "between 0 and 1"),
            "dupe_factor": (1 <= self.dupe_factor <= MAX_USES, f"between 1 and {MAX_USES}"),
            "masked_lm_prob": (0 < self.masked_lm_prob < 1, "between 0 and 1"),
            "max_predictions_per_seq": (
                self.max_predictions_per_seq is None
                or 1 <= self.max_predictions_per_seq <= self.max_seq_length,
                f"between 1 and max_seq_length ({self.max_seq_length})",
            ),
            "mask_fraction": (0 <= self.mask_fraction <= 1, "between 0 and 1"),
            "random_fraction": (
                0 <= self.random_fraction <= 1 - self.mask_fraction + 1e-9,
                f"between 0 and 1 - mask_fraction ({1 - self.mask_fraction:g})",
            ),
            "max_ngram": (1 <= self.max_ngram <= 10, "between 1 and 10"),
            "validation_fraction": (0 <= self.validation_fraction < 1, "from 0 to below 1"),
            "num_shards": (1 <= self.num_shards < 10**5, "between 1 and 99999"),
            "objective": (self.objective in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"),
            "masking": (self.masking in ("static", "dynamic"), "static or dynamic"),
            "format": (self.format in FORMATS, f"one of {', '.join(FORMATS)}"),
            "seed": (0 <= self.seed < 2**63, "from 0 to below 2**63"),
            "max_decode_errors": (0 <= self.max_decode_errors <= 1, "between 0 and 1"),
            "weights": (
                len(self.weights) in (0, len(self.input))
                and all(0 <= w * self.dupe_factor <= MAX_USES for w in self.weights)
                and (any(self.weights) or not self.weights),
                f"one number, 0 or more, for each of the {len(self.input)} sources, not all 0, and "
                f"at most {MAX_USES} when multiplied by --dupe_factor",
            ),
        }
        for name, (is_good, expected) in required.items():
            if not is_good:
                raise UserError(f"--{name} is {getattr(self, name)}: expected {expected}")
        if not self.input:
            raise UserError("no input: give --input=SOURCE[,SOURCE…]")
        if self.format == "tfrecord" and self.masking == "dynamic":
            raise UserError("--format=tfrecord holds masked examples: use --masking=static")
        predictions = self.max_predictions_per_seq
        if predictions is None:
            predictions = default_max_predictions(self.max_seq_length, self.masked_lm_prob)
        return dataclasses.replace(
            self,
            language=languages.resolve(self.language),
            weights=self.weights or (1.0,) * len(self.input),
            max_predictions_per_seq=predictions,
        )

    @property
    def masking_config(self) -> MaskingConfig:
        return MaskingConfig.from_arguments(dataclasses.asdict(self.checked()))

    def shard_options(self, split: str) -> ShardOptions:
        """Validation documents are used once each, whatever the duplicates and weights."""
        is_train = split == "train"
        return ShardOptions(
            objective=self.objective,
            max_seq_length=self.max_seq_length,
            short_seq_prob=self.short_seq_prob,
            dupe_factor=self.dupe_factor if is_train else 1,
            weights=self.weights if is_train else tuple(float(w > 0) for w in self.weights),
            masking=self.masking_config if self.masking == "static" else None,
            seed=self.seed,
        )


def arguments(options: BuildOptions) -> dict[str, Any]:
    """The options as they stand in JSON, defaults filled in."""
    return json.loads(json.dumps(dataclasses.asdict(options.checked())))


def split_sources(value: str) -> tuple[str, ...]:
    r"""'a.txt,b.txt' -> ('a.txt', 'b.txt'); r'a\,b.txt' -> ('a,b.txt',).

    A value that is the name of a file as it stands is that file.

    Raises:
      UserError: nothing between two commas.
    """
    if os.path.isfile(value):
        return (value,)
    found = tuple(part.replace(r"\,", ",") for part in re.split(r"(?<!\\),", value))
    if not all(part.strip() for part in found):
        raise UserError(
            f"--input is {value!r}: expected SOURCE[,SOURCE…], found an empty one "
            r"(a comma in a name is written as \,)"
        )
    return found


def split_numbers(name: str, value: str) -> tuple[float, ...]:
    """'1,0.5' -> (1.0, 0.5); '' -> ()."""
    try:
        return tuple(float(number) for number in value.split(",")) if value else ()
    except ValueError:
        raise UserError(f"--{name} is {value}: expected numbers, as in 1,0.5") from None


def add_build_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field of BuildOptions, and --output."""
    defaults = {field.name: field.default for field in dataclasses.fields(BuildOptions)}

    def add(group: Any, name: str, text: str, **keywords: Any) -> None:
        if "action" not in keywords and "type" not in keywords:
            keywords["type"] = type(defaults[name])
        default = defaults.get(name)
        if default is None:  # the text says what it follows from
            default = argparse.SUPPRESS
        group.add_argument(f"--{name}", default=default, help=text, **keywords)

    data = parser.add_argument_group("input and output")
    data.add_argument(
        "--input",
        required=True,
        metavar="SOURCE[,SOURCE…]",
        help=r"where text is; a comma in a name is written as \,",
    )
    data.add_argument(
        "--tokenizer", required=True, help="directory, vocab.txt file or hub name of the tokenizer"
    )
    data.add_argument("--output", required=True, metavar="DATA_DIR", help="directory to fill")
    add(data, "field", "the text field of JSON and Parquet")
    data.add_argument(
        "--weights",
        default="",
        metavar="W[,W…]",
        help="one factor on dupe_factor for each source; all 1 by default",
    )
    add(data, "language", "ISO 639 code for sentence splitting, such as en, pt-br or deu")
    add(data, "sentence_per_line", "each line is a sentence", action="store_true")
    add(data, "document_per_line", "each line of a text file is a document", action="store_true")
    add(data, "max_decode_errors", "stop where a larger share of bytes is not UTF-8")
    add(data, "deduplicate", "use documents with equal text once", action="store_true")
    add(data, "validation_fraction", "share of documents held out, chosen by content")
    add(data, "num_shards", "files of the training split; fewer for a tiny corpus")
    add(data, "format", "file format", choices=tuple(FORMATS))
    examples = parser.add_argument_group("examples")
    add(examples, "objective", "what an example is", choices=OBJECTIVES)
    add(examples, "max_seq_length", "positions of an example, special tokens included")
    add(examples, "short_seq_prob", "share of documents with shorter pairs (nsp, sop)")
    add(examples, "dupe_factor", "uses of each document, with new pairs and masks each time")
    add(examples, "seed", "of everything random")
    masks = parser.add_argument_group("masks")
    add(
        masks,
        "masking",
        "dynamic: the loader draws new masks in every epoch",
        choices=("static", "dynamic"),
    )
    add(masks, "masked_lm_prob", "share of tokens to predict")
    add(
        masks,
        "max_predictions_per_seq",
        "the most tokens to predict in an example; by default max_seq_length * masked_lm_prob, "
        "rounded up",
        type=int,
    )
    add(masks, "mask_fraction", "of those, the share replaced by [MASK]")
    add(masks, "random_fraction", "and by a random token; the rest is kept")
    add(masks, "whole_word_mask", "choose whole words", action="store_true")
    add(masks, "max_ngram", "choose runs of up to so many tokens or words")
