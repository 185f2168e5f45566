"""A small BERT and its tokenizer, for tests against transformers."""

import transformers

from bert_jax.data import tokenizer

WORDS = ("the", "capital", "of", "france", "is", "paris", "how", "many", "?", ".", ",", "##s")
TOKENIZER = tokenizer.WordPieceTokenizer(
    (*tokenizer.SPECIAL_TOKENS, *WORDS, *(f"w{i}" for i in range(183)))
)
SIZES = {
    "vocab_size": TOKENIZER.vocab_size,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def load_torch(name, directory):
    model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    return model, info
