"""The other side of the comparisons: Hugging Face's models in torch, on the batches made here."""

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
from bert_jax.huggingface.keys import PRETRAINING
from bert_jax.models import architectures, heads

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
) -> transformers.PreTrainedModel:
    """transformers' class with our parameters, in training mode, attention by torch's sdpa."""
    model_config = heads.make_model(config).config
    tensors = hf_tensors.to_tensors(params, model_config)
    name = hf_tensors.class_of(params, model_config, PRETRAINING).name
    description = config_json.make(name, model_config, "float32", pad_token_id=0, task=PRETRAINING)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**description))
    missing, extra = model.load_state_dict(
        {name: torch.tensor(x) for name, x in tensors.items()}, strict=False
    )
    assert not extra and all("decoder" in name for name in missing), (missing, extra)  # tied
    model.tie_weights()
    return model.train()


def pretraining_batch(
    batch: dict[str, np.ndarray], architecture: str = "bert"
) -> dict[str, torch.Tensor]:
    """Our batch as the class of `pretraining_model` wants it: a label at every position."""
    labels = np.full(batch["input_ids"].shape, IGNORED)
    rows, slots = np.nonzero(batch["masked_lm_weights"])
    labels[rows, batch["masked_lm_positions"][rows, slots]] = batch["masked_lm_ids"][rows, slots]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    inputs["labels"] = labels
    if architectures.named(architecture).next_sentence:
        inputs["next_sentence_label"] = batch["next_sentence_labels"]
    if architecture == "modernbert":  # which would drop them silently
        del inputs["token_type_ids"]
    return {name: torch.tensor(x, dtype=torch.long) for name, x in inputs.items()}


class StableAdamW(torch.optim.Optimizer):
    """Wortsman et al. 2023, algorithm 2, with debiased betas; decay of the clipped rate.

    As torch-optimi 0.3.3 computes it, whose decay is not multiplied by the peak.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state["t"] += 1
                b1, b2 = (
                    b * (1 - b ** (state["t"] - 1)) / (1 - b ** state["t"]) for b in (beta1, beta2)
                )
                state["m"].lerp_(p.grad, 1 - b1)
                state["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                rms = (p.grad.square() / state["v"].clamp(min=eps**2)).mean().sqrt().item()
                rate = group["lr"] / max(1.0, rms)
                p.mul_(1 - rate * group["weight_decay"])
                p.addcdiv_(state["m"], state["v"].sqrt() + eps, value=-rate)


def adamw(
    model: torch.nn.Module, settings: ml_collections.ConfigDict, **options: Any
) -> torch.optim.Optimizer:
    """The optimizer of the same settings: biases and LayerNorm without decay, rate 1 for now."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    common = {"lr": 1.0, "betas": (settings.b1, settings.b2), "eps": settings.eps}
    if settings.name == "stableadamw":
        return StableAdamW(groups, common)
    return torch.optim.AdamW(groups, **common, **options)
