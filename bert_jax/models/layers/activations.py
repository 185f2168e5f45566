"""The activation functions that `config.model.hidden_act` names."""

import jax

from bert_jax.models.layers.gelu import exact_gelu, tanh_gelu

# Google's BERT computes the tanh approximation of GELU; Hugging Face's "gelu" is the erf form.
ACTIVATIONS = {
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu": exact_gelu,
    "relu": jax.nn.relu,
}
