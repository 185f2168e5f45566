"""The lengths that a run is planned for: of flags, of the data, of the config, or assumed."""

import logging
import re
from collections.abc import Sequence

import ml_collections
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data import masking, packing, records
from bert_jax.models import architectures
from bert_jax.training.phases import Phase

LOG = logging.getLogger(__name__)
ASSUMED_LENGTH = 128  # tokens, the default


def lengths_of(
    config: ml_collections.ConfigDict, max_seq_length: int = 0, max_predictions_per_seq: int = 0
) -> dict[str, int]:
    """Length and predictions of a row: given, else of the data, of the config, or as built.

    With packing a row has its examples' predictions together.
    """
    masked_lm_prob = config.masked_lm_prob or 0.15
    if config.data_dir and (config.packing or not (max_seq_length and max_predictions_per_seq)):
        arguments = records.Manifest.read(config.data_dir).arguments
        max_seq_length = max_seq_length or arguments["max_seq_length"]
        masked_lm_prob = config.masked_lm_prob or arguments["masked_lm_prob"]
        is_of_data = masked_lm_prob == arguments["masked_lm_prob"]
        if max_seq_length == arguments["max_seq_length"] and is_of_data:
            of_data = arguments["max_predictions_per_seq"]
            max_predictions_per_seq = max_predictions_per_seq or of_data
    max_seq_length = max_seq_length or config.get("max_seq_length", 0) or ASSUMED_LENGTH
    longest = architectures.make_config(config.model).max_length
    if max_seq_length > longest:
        raise UserError(
            f"--max_seq_length={max_seq_length}: the model reads {longest} tokens at most: raise "
            "config.model.max_position_embeddings, or shorten the sequences"
        )
    max_predictions_per_seq = max_predictions_per_seq or masking.default_max_predictions(
        max_seq_length, masked_lm_prob
    )
    lengths = {
        "max_seq_length": max_seq_length,
        "max_predictions_per_seq": max_predictions_per_seq,
    }
    arguments = {**lengths, "masked_lm_prob": masked_lm_prob}
    return lengths | {"max_predictions_per_seq": packing.max_predictions(arguments, config.packing)}


def one_per_phase(flag: str, text: str, count: int) -> list[int]:
    """'128,512' -> [128, 512]; one number is that of all `count` phases, '' is 0."""
    if text and not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--{flag}={text}: expected a number, or one per phase: --{flag}=128,512")
    values = [int(value) for value in (text or "0").split(",")]
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise UserError(
            f"--{flag}={text} has {len(values)} numbers, but the run has {count} phase(s): "
            "expected one number for all, or one per phase"
        )
    return values


def describe_assumed(planned: Sequence[Phase], max_seq_lengths: Sequence[int]) -> str:
    """A line on the phases whose length no flag, data or field says; "" if there are none."""
    assumed = [
        f"phase {number}"
        for number, (phase, given) in enumerate(zip(planned, max_seq_lengths, strict=True), 1)
        if not (given or phase.config.data_dir or phase.config.get("max_seq_length", 0))
    ]
    if not assumed:
        return ""
    flag = "--max_seq_length=" + ",".join(["LENGTH"] * len(planned))
    field = "max_seq_length in config.phases" if planned[0].config.phases else "config.data_dir"
    return (
        f"assumed: {ASSUMED_LENGTH} tokens per sequence in {' and '.join(assumed)}, as no "
        f"data says the length; set it by {flag} or {field}"
    )


def _reachable(data_dir: str) -> bool:
    """Whether the data set is there and can be read from this machine."""
    try:
        return (epath.Path(data_dir) / records.MANIFEST).exists()
    except Exception as error:  # no package for gs://, no network, no permission
        LOG.debug("%s: %s", data_dir, error)
        return False


def skip_unreachable(planned: Sequence[Phase]) -> None:
    """Empties the phases' data_dir where it cannot be read from this machine."""
    for data_dir in dict.fromkeys(phase.config.data_dir for phase in planned):
        if _reachable(data_dir):
            continue
        LOG.info("%s cannot be read from here: it does not say the lengths", data_dir)
        for phase in planned:
            if phase.config.data_dir == data_dir:
                phase.config.data_dir = ""
