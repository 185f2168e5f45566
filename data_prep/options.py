"""The options of a data set: what determines its bytes."""

import dataclasses
import json
import re
from typing import Any

from bert_jax.cli import UserError
from bert_jax.data.masking import MaskingConfig, default_max_predictions
from data_prep.examples.shards import ShardOptions
from data_prep.sources import corpus

OBJECTIVES = ("nsp", "sop", "full_sentences", "doc_sentences")
FORMATS = ("array_record", "tfrecord")


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
    max_decode_errors: float = corpus.MAX_DECODE_ERRORS
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
            "dupe_factor": (self.dupe_factor >= 1, "at least 1"),
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
            "language": (
                re.fullmatch("[a-z]{2,3}(-[a-z]+)*", self.language) is not None,
                "an ISO 639-1 code, such as en or pt-br",
            ),
            "weights": (
                len(self.weights) in (0, len(self.input))
                and all(w >= 0 for w in self.weights)
                and (any(self.weights) or not self.weights),
                f"one number, 0 or more, for each of the {len(self.input)} sources, not all 0",
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
