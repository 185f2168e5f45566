"""The other side of the comparisons: Hugging Face's BERT in torch, on the batches made here."""

import os
import pathlib
import platform
import re
from typing import Any

import jax
import ml_collections
import numpy as np
import torch
import transformers

from bert_jax.huggingface import config_json
from bert_jax.huggingface import tensors as hf_tensors
from bert_jax.models import heads

# JAX would take most of a GPU's memory for itself; torch needs its part.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

IGNORED = -100  # transformers' label of a position that is not scored


def environment() -> dict[str, str]:
    """What times depend on."""
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores; {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),  # of both sides' memory
    }


def cpu_name() -> str:
    """'AMD EPYC (family 25, model 17)' where Linux tells: generations may share a name."""
    path = pathlib.Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.exists() else ""
    facts = dict(re.findall(r"^(.*?)\s*:[ \t]*(.*)$", first, re.MULTILINE))
    if not {"model name", "cpu family", "model"} <= facts.keys():
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"


def pretraining_model(
    config: ml_collections.ConfigDict, params: Any
) -> transformers.BertForPreTraining:
    """BertForPreTraining with our parameters, in training mode, attention by torch's sdpa."""
    model_config = heads.make_model(config).config
    tensors = hf_tensors.to_tensors(params, model_config)
    description = config_json.make(
        "BertForPreTraining", model_config, "float32", pad_token_id=0, task="pretraining"
    )
    model = transformers.BertForPreTraining(transformers.BertConfig(**description))
    missing, extra = model.load_state_dict(
        {name: torch.tensor(x) for name, x in tensors.items()}, strict=False
    )
    assert not extra and all("decoder" in name for name in missing), (missing, extra)  # tied
    model.tie_weights()
    return model.train()


def pretraining_batch(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Our batch as BertForPreTraining wants it: a label at every position."""
    labels = np.full(batch["input_ids"].shape, IGNORED)
    rows, slots = np.nonzero(batch["masked_lm_weights"])
    labels[rows, batch["masked_lm_positions"][rows, slots]] = batch["masked_lm_ids"][rows, slots]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    inputs |= {"labels": labels, "next_sentence_label": batch["next_sentence_labels"]}
    return {name: torch.tensor(x, dtype=torch.long) for name, x in inputs.items()}


def adamw(
    model: torch.nn.Module, settings: ml_collections.ConfigDict, **options: Any
) -> torch.optim.AdamW:
    """AdamW of the same settings: biases and LayerNorm without decay, learning rate 1 for now."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=1.0,
        betas=(settings.b1, settings.b2),
        eps=settings.eps,
        **options,
    )
