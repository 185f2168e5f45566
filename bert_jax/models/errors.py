"""What models raise when they cannot be what they are asked to be."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bert_jax.cli import UserError


class ModelError(UserError, ValueError):
    """Sizes or settings that no model can have.

    A ValueError to those who call models from Python; the commands print it as one line.
    """


def out_of_range(config: Any, sizes: Sequence[str], rates: Sequence[str]) -> Iterator[str]:
    """For each of a config's sizes that is less than 1, and of its rates outside of [0, 1)."""
    for name in sizes:
        if getattr(config, name) < 1:
            yield f"{name} {getattr(config, name)!r} is less than 1"
    for name in rates:
        if not 0 <= getattr(config, name) < 1:
            yield f"{name} {getattr(config, name)!r} is not from 0 to below 1"


def not_among(config: Any, choices: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """For each field of a config whose value is none of its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            yield f"{name} {getattr(config, name)!r} is not one of {allowed}"
