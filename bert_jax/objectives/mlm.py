"""BERT's pretraining objective: masked tokens and next sentences.

B is the global batch, M the masked positions of an example, V the padded vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models import architectures
from bert_jax.models.heads import PretrainingModel
from bert_jax.objectives.base import (
    Batch,
    Objective,
    Scalars,
    cross_entropy,
    is_right,
    log_normaliser,
)

# Ends of the bands of tokens, by rank of frequency in the training data, that evaluation is
# broken down by: a model that guesses by frequency alone is right in the first and nowhere else.
FREQUENCY_BANDS = (100, 1_000, 10_000)


def pretraining_objective(
    model: PretrainingModel,
    next_sentence: bool = True,
    mask_id: int | None = None,
    token_ranks_V: np.ndarray | None = None,
    z_loss: float = 0.0,
) -> Objective:
    """Mean MLM loss over masked tokens + mean NSP loss over pairs (BERT's paper, appendix A.2).

    Args:
      next_sentence: whether the examples have next-sentence labels; an encoder that is not
        pretrained on pairs skips them.
      mask_id: given (for evaluation), MLM accuracy is also broken down by what stood at the
        position: [MASK], a random token, or the token itself (mlm_accuracy_mask, _random, _kept).
      token_ranks_V: given (for evaluation), also by how frequent the token is: its rank in the
        training data, from 0 (mlm_accuracy_rank_1_100, …).
      z_loss: the weight of the mean log²(Σ exp(logits)) over masked tokens, which keeps logits from
        drifting (de Brébisson and Vincent 2016, https://arxiv.org/abs/1604.08859).
    """

    architecture = architectures.of(model.config)
    batch_fields = architecture.batch_fields
    next_sentence = next_sentence and architecture.next_sentence

    def groups(batch: Batch) -> dict[str, jax.Array]:
        """The masked positions that each further accuracy counts: name -> float[B, M]."""
        labels_BM, weights_BM = batch["masked_lm_ids"], batch["masked_lm_weights"]
        result: dict[str, jax.Array] = {}
        if mask_id is not None:
            read_BM = jnp.take_along_axis(batch["input_ids"], batch["masked_lm_positions"], axis=1)
            kinds = {"mask": read_BM == mask_id, "kept": read_BM == labels_BM}
            kinds["random"] = ~(kinds["mask"] | kinds["kept"])
            result |= {f"mlm_accuracy_{kind}": where * weights_BM for kind, where in kinds.items()}
        if token_ranks_V is not None:
            ranks_BM = jnp.asarray(token_ranks_V)[labels_BM]
            for low, high in zip((0, *FREQUENCY_BANDS), (*FREQUENCY_BANDS, None), strict=True):
                inside = (ranks_BM >= low) & (high is None or ranks_BM < high)
                name = f"mlm_accuracy_rank_{low + 1}_{high or 'up'}"
                result[name] = inside * weights_BM
        return result

    def sums(params: Any, batch: Batch, dropout_keys_B: jax.Array | None) -> Scalars:
        output: Any = model.apply(
            {"params": params},
            *(batch[name] for name in batch_fields),
            batch["masked_lm_positions"],
            dropout_keys_B,
            batch.get("position_ids"),
            batch.get("first_token_positions"),
        )
        logits_BMV, labels_BM = output.mlm_logits_BMV, batch["masked_lm_ids"]
        weights_BM = batch["masked_lm_weights"]
        loss_BM = cross_entropy(logits_BMV, labels_BM)
        right_BM = is_right(logits_BMV, labels_BM)
        result = {
            "mlm_loss": jnp.sum(loss_BM * weights_BM),
            "mlm_accuracy": jnp.sum(right_BM * weights_BM),
            **{name: jnp.sum(right_BM * where) for name, where in groups(batch).items()},
        }
        if z_loss:
            squares_BM = jnp.square(log_normaliser(logits_BMV))
            result["z_loss"] = z_loss * jnp.sum(squares_BM * weights_BM)
        if next_sentence:
            # Packed, both have the examples of a row as a second axis.
            logits_B2, labels_B = output.nsp_logits_B2, batch["next_sentence_labels"]
            weights_B = labels_B >= 0
            loss_B = cross_entropy(logits_B2, jnp.maximum(labels_B, 0))
            result["nsp_loss"] = jnp.sum(loss_B * weights_B)
            result["nsp_accuracy"] = jnp.sum(
                is_right(logits_B2, jnp.maximum(labels_B, 0)) * weights_B
            )
        return result

    def weights(batch: Batch) -> Scalars:
        masked = jnp.sum(batch["masked_lm_weights"])
        result = {"mlm_loss": masked, "mlm_accuracy": masked}
        result |= {name: jnp.sum(where) for name, where in groups(batch).items()}
        if z_loss:
            result["z_loss"] = masked
        if next_sentence:
            pairs = jnp.sum(batch["next_sentence_labels"] >= 0).astype(jnp.float32)
            result |= {"nsp_loss": pairs, "nsp_accuracy": pairs}
        return result

    losses = ("mlm_loss", *["nsp_loss"] * next_sentence, *["z_loss"] * (z_loss > 0))
    return Objective(losses, sums, weights)
