"""The table of chips, and the count of FLOPs against XLA's own."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models.bert import BertConfig
from bert_jax.models.heads import BertForPreTraining
from bert_jax.parallel import hardware

LENGTH, PREDICTIONS, BATCH = 128, 20, 2
# Wide enough for its matrix products to outweigh elementwise work, as in any real model.
MODEL = BertConfig(
    vocab_size=1024,
    hidden_size=512,
    num_hidden_layers=3,
    num_attention_heads=8,
    intermediate_size=2048,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def xla_flops(predictions: int) -> float:
    """What XLA counts in the gradient of a loss that uses both heads; compiles, runs nothing."""
    model = BertForPreTraining(MODEL)
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    positions = jax.ShapeDtypeStruct((BATCH, predictions), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids, ids, ids)["params"]

    def loss(params, ids, positions):
        output = model.apply({"params": params}, ids, ids, ids, positions)
        return jnp.sum(output.mlm_logits_BMV**2) + jnp.sum(output.nsp_logits_B2**2)

    return jax.jit(jax.grad(loss)).lower(params, ids, positions).compile().cost_analysis()["flops"]


def test_training_flops_are_those_xla_counts():
    counted = hardware.training_flops(MODEL, LENGTH, PREDICTIONS, BATCH)
    assert xla_flops(PREDICTIONS) == pytest.approx(counted, rel=0.01)


def test_training_flops_of_published_sizes():
    # 6 × parameters × tokens is the rule of thumb: 85 M in base's layers, 302 M in large's.
    base = hardware.training_flops(BertConfig(), 128, 20, 1)
    assert base == pytest.approx(6 * 85e6 * 128, rel=0.1)
    large = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    assert hardware.training_flops(large, 128, 20, 1) == pytest.approx(6 * 302e6 * 128, rel=0.1)
    assert hardware.training_flops(large, 128, 20, 256) == 256 * hardware.training_flops(
        large, 128, 20, 1
    )


@pytest.mark.parametrize(
    ("kind", "cores", "expected"),
    [
        ("TPU v5 lite", 1, 197e12),
        ("TPU v4", 2, 275e12),
        ("TPU v4", 1, 137.5e12),  # each of the chip's two cores is a device
        ("NVIDIA H100 80GB HBM3", None, 989e12),
        ("cpu", None, None),
    ],
)
def test_peak_flops(kind, cores, expected):
    device = types.SimpleNamespace(device_kind=kind)
    if cores:
        device.num_cores = cores
    assert hardware.peak_flops(device) == expected


def test_device_kinds_are_unambiguous():
    kinds = [kind for chip in hardware.CHIPS for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))


def slice_of(*extents: int) -> list[types.SimpleNamespace]:
    """A TPU slice's devices, as far as their place goes; two dimensions or three."""
    extents = (*extents, 1)[:3]
    return [types.SimpleNamespace(coords=coords) for coords in np.ndindex(*extents)]


@pytest.mark.parametrize(
    ("name", "extents", "varying", "links"),
    [
        ("v5e", (16, 16), (0, 1), 4),  # all of a full pod: two rings of two links
        ("v5e", (16, 16), (0,), 2),  # a row of it
        ("v5e", (4, 4), (0, 1), 2),  # lines, not rings: only 16 close
        ("v5p", (8, 8, 8), (0, 1, 2), 6),
        ("v5p", (8, 8, 8), (2,), 2),
        ("v5p", (2, 2, 1), (0, 1), 2),
    ],
)
def test_bandwidth_of_a_group_is_that_of_its_links(name, extents, varying, links):
    chip = next(chip for chip in hardware.CHIPS if chip.name == name)
    devices = slice_of(*extents)
    group = [d for d in devices if all(d.coords[i] == 0 for i in range(3) if i not in varying)]
    link = chip.interconnect_bandwidth / (2 * chip.torus)
    assert hardware.group_bandwidth(chip, group, devices) == links * link


def test_bandwidth_behind_a_switch_is_the_chip_s():
    chip = next(chip for chip in hardware.CHIPS if chip.name == "H100")
    devices = [types.SimpleNamespace() for _ in range(8)]
    assert hardware.group_bandwidth(chip, devices[:2], devices) == 450e9
