"""What models raise when they cannot be what they are asked to be."""

from bert_jax.cli import UserError


class ModelError(UserError, ValueError):
    """Sizes or settings that no model can have.

    A ValueError to those who call models from Python; the commands print it as one line.
    """
