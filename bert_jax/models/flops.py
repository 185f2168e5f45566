"""How many FLOPs a training step needs."""

from bert_jax.models import architectures
from bert_jax.models.architectures import EncoderConfig


def training_flops(
    config: EncoderConfig, seq_length: int, predictions: int, batch_size: int
) -> float:
    """Model FLOPs of an optimizer step: what the mathematics needs, whatever the program does.

    A multiplication and its addition are two FLOPs, the backward pass is twice the forward pass.
    Matmuls alone are counted: not lookups, softmax, LayerNorm, activations, dropout, the optimizer;
    nor what remat computes again, nor the padding of the vocabulary, nor what the last layer would
    give at positions that no head reads.

    Args:
      config: sizes of the model.
      seq_length: positions of a sequence, padding included.
      predictions: positions of a sequence at which the vocabulary is scored.
      batch_size: sequences of an optimizer step, over all devices.
    """
    width, read = config.hidden_size, min(predictions + 1, seq_length)
    architecture = architectures.of(config)
    encoder = architecture.multiplications(config, seq_length, read)
    mlm_head = predictions * (width**2 + width * config.vocab_size)
    nsp_head = width**2 + 2 * width if architecture.next_sentence else 0
    return 3 * 2.0 * batch_size * (encoder + mlm_head + nsp_head)
