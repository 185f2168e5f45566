"""BERT pretraining in JAX/Flax: from raw text to a Hugging Face checkpoint."""

__version__ = "0.2.0"
