"""BERT pretraining in JAX/Flax: from raw text to a Hugging Face checkpoint.

    model = bert_jax.load("runs/tiny")  # then model.encode, embed, classify, fill_mask, …
    config = bert_jax.recipe("bert_base", batch_size=512)
    bert_jax.pretrain.run(config, "runs/base")

The modules of the commands are the rest of the API: `pretrain`, `finetune`, `convert`, …. All of it
is imported when it is first used, so that `import bert_jax` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_jax import convert, evaluate, explain, finetune, metrics, plan, predict, pretrain
    from bert_jax.cli import UserError
    from bert_jax.config import recipe
    from bert_jax.inference.model import load

__version__ = "0.2.0"
__all__ = [
    "UserError",
    "convert",
    "evaluate",
    "explain",
    "finetune",
    "load",
    "metrics",
    "plan",
    "predict",
    "pretrain",
    "recipe",
]

_PLACES = {
    "UserError": "bert_jax.cli",
    "load": "bert_jax.inference.model",
    "recipe": "bert_jax.config",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = value
        return value
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
