"""Every implementation of attention equals the plain one; kernels run in interpret mode here.

On a mesh, and in the whole training step: test_train.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.cli import UserError
from bert_jax.models import heads
from bert_jax.models.bert import BertConfig
from bert_jax.models.errors import ModelError
from bert_jax.models.heads import PretrainingModel
from bert_jax.models.layers import attention, fused_attention
from bert_jax.models.layers.attention import attend
from bert_jax.models.layers.dropout import dropout_keys
from bert_jax.parallel import sharding

BATCH, HEADS, SIZE = 3, 4, 8
KEYS = dropout_keys(0, np.int32(3), BATCH)


def inputs(length: int, packed: bool = False):
    """q, k, v, weights of the outputs (0 at padding), and the mask; the second row has padding."""
    rng = np.random.default_rng(0)
    q, k, v, weights = rng.standard_normal((4, BATCH, length, HEADS, SIZE)).astype(np.float32)
    mask = np.ones((BATCH, length), np.int32)
    mask[1, 5 * length // 8 :] = 0
    if packed:
        mask[0, length // 3 :] = 2
        mask[1, length // 4 : length // 2] = 2
    return q, k, v, weights * (mask > 0)[..., None, None], mask


def outputs(arguments, dropout_keys_B=None, attend=attend, **settings) -> dict[str, np.ndarray]:
    """The real rows of the output, and gradients of q, k and v."""
    q, k, v, weights, mask = arguments

    def f(q, k, v):
        y = attend(q, k, v, mask, dropout_keys_B, dropout_rate=0.3, site=5, **settings)
        return jnp.sum(y * weights), y

    (_, y), gradients = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)
    y = y * (mask > 0)[..., None, None]
    return {"y": y, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}


def assert_equal(these, those, atol=3e-6):
    for name in those:
        assert np.abs(those[name]).max() > 0.1
        np.testing.assert_allclose(these[name], those[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("packed", [False, True])
def test_xla_is_softmax_attention(packed):
    q, k, v, _, mask = inputs(16, packed)
    y = attend(q, k, v, mask, packed=packed, implementation="xla")
    for b in range(BATCH):
        for i in np.flatnonzero(mask[b]):
            keys = (mask[b] == mask[b, i]) if packed else (mask[b] > 0)
            for h in range(HEADS):
                weights = np.exp(k[b, keys, h] @ q[b, i, h] / np.sqrt(SIZE))
                expected = weights @ v[b, keys, h] / weights.sum()
                np.testing.assert_allclose(y[b, i, h], expected, atol=1e-5)


def test_softmax_is_jax_s():
    scores, weights = np.random.default_rng(0).normal(0, 3, (2, 5, 7)).astype(np.float32)
    scores[1, 3:] = -1e30  # keys that may not be attended to
    scores[2] = -1e30
    found, gradient = jax.value_and_grad(lambda x: jnp.sum(attention.softmax(x) * weights))(scores)
    expected = jax.value_and_grad(lambda x: jnp.sum(jax.nn.softmax(x) * weights))(scores)
    np.testing.assert_allclose(found, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dropout_keys_B", [None, KEYS], ids=["no dropout", "dropout"])
def test_fused_equals_xla(dropout_keys_B, packed):
    arguments = inputs(32, packed)
    plain = outputs(arguments, dropout_keys_B, packed=packed, implementation="xla")
    assert_equal(outputs(arguments, dropout_keys_B, packed=packed, implementation="fused"), plain)


@pytest.mark.parametrize("size", [64, 128])
def test_fused_equals_xla_with_published_head_sizes(size):
    """Two heads of 64 share a block, one of 128 fills it."""
    rng = np.random.default_rng(1)
    q, k, v, weights = rng.standard_normal((4, BATCH, 128, 4, size)).astype(np.float32)
    arguments = (q, k, v, weights, inputs(128)[-1])
    settings = fused_attention.Settings(size, 128, 0, False, True)
    assert fused_attention.blocks_of(settings, 4 * size) == (128, 4 * size // 128, 128 // size)
    q[1, 80:] = weights[1, 80:] = 0
    plain = outputs(arguments, KEYS, implementation="xla")
    assert_equal(outputs(arguments, KEYS, implementation="fused"), plain, 1e-4)


def test_fused_in_bfloat16_stays_near_float32():
    arguments = inputs(32)
    half = tuple(x.astype(jnp.bfloat16) for x in arguments[:4]) + arguments[4:]
    exact = outputs(arguments, KEYS, implementation="xla")
    for implementation in ("xla", "fused"):
        result = outputs(half, KEYS, implementation=implementation)
        assert result["dq"].dtype == jnp.bfloat16
        for name, expected in exact.items():
            error = np.abs(result[name].astype(np.float32) - expected).max()
            assert error < 0.02 * np.abs(expected).max(), (implementation, name)


def test_fused_and_xla_drop_to_the_same_scale_in_bfloat16():
    """With one key alone every probability is 1, so what is kept is the scale."""
    q, k, v, weights, mask = inputs(32)
    v, mask = np.ones_like(v), (np.arange(32) < 1).astype(np.int32) + mask * 0
    half = tuple(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, weights))
    found = {
        name: np.unique(outputs((*half, mask), KEYS, implementation=name)["y"].astype(np.float32))
        for name in ("xla", "fused")
    }
    np.testing.assert_array_equal(found["xla"], found["fused"])
    assert found["xla"][-1] == np.float32(jnp.bfloat16(1 / 0.7))


@pytest.mark.parametrize("implementation", ["xla", "fused"])
def test_rows_without_any_key_give_no_nan(implementation):
    q, k, v, weights, mask = inputs(32)
    mask[2] = 0
    result = outputs((q, k, v, weights * 0 + 1, mask), KEYS, implementation=implementation)
    assert all(np.isfinite(x).all() for x in result.values())


@pytest.mark.parametrize("packed", [False, True])
def test_splash_equals_xla(packed):
    arguments = inputs(128, packed)
    plain = outputs(arguments, packed=packed, implementation="xla")
    assert_equal(outputs(arguments, packed=packed, implementation="splash"), plain)


@pytest.mark.parametrize("packed", [False, True])
def test_library_call_masks_as_xla_does(packed, monkeypatch):
    """cuDNN itself needs a GPU; JAX gives its other implementation the same arguments."""
    arguments = inputs(16, packed)

    def library(q, k, v, mask, dropout_keys_B, dropout_rate, site, **settings):
        return attention._library(q, k, v, mask, packed, "xla")

    assert_equal(
        outputs(arguments, attend=library), outputs(arguments, packed=packed, implementation="xla")
    )
    calls = []
    monkeypatch.setattr(attention, "platform_of", lambda mesh: "gpu")
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, *_, **named: calls.append(named) or q
    )
    attend(*(x.astype(jnp.bfloat16) for x in arguments[:3]), arguments[4], packed=packed)
    assert calls[0]["implementation"] == "cudnn"
    assert calls[0]["mask"].shape == (BATCH, 1, 16, 16)  # cuDNN's takes no other


USUAL = dict(heads=12, head_size=64, dtype="bfloat16", dropping=True, rng="hash")


@pytest.mark.parametrize(
    ("platform", "length", "changes", "expected"),
    [
        ("tpu", 128, {}, "xla"),
        ("tpu", 128, {"dropping": False}, "xla"),
        ("tpu", 512, {}, "fused"),
        ("tpu", 256, {"dtype": "float32"}, "fused"),
        ("tpu", 384, {"dropping": False}, "splash"),
        ("tpu", 512, {"rng": "threefry"}, "xla"),
        ("tpu", 512, {"rng": "threefry", "dropping": False}, "splash"),
        ("tpu", 300, {}, "xla"),
        # Blocks of 640 lanes, and of 384 in float32, do not compile.
        ("tpu", 512, {"heads": 16, "head_size": 80}, "xla"),
        ("tpu", 512, {"heads": 8, "head_size": 96, "dtype": "float32"}, "xla"),
        ("tpu", 512, {"heads": 8, "head_size": 96}, "fused"),
        ("tpu", 512, {"dtype": "float32"}, "fused"),
        ("tpu", 1024, {}, "xla"),
        ("tpu", 1024, {"dropping": False}, "splash"),
        ("gpu", 128, {"dropping": False}, "cudnn"),
        ("gpu", 128, {}, "xla"),
        ("gpu", 128, {"dropping": False, "dtype": "float32"}, "xla"),
        ("gpu", 128, {"dropping": False, "head_size": 100}, "xla"),
        ("gpu", 127, {"dropping": False}, "xla"),
        ("old gpu", 128, {"dropping": False}, "xla"),
        ("cpu", 512, {}, "xla"),
        ("cpu", 512, {"dropping": False}, "xla"),
    ],
)
def test_choice(platform, length, changes, expected):
    settings = USUAL | {"platform": platform, "length": length} | changes
    assert attention.choose("auto", **settings) == expected
    assert attention.choose(expected, **settings) == expected


@pytest.mark.parametrize(
    ("implementation", "changes", "message"),
    [
        ("cudnn", {"dropping": False}, "cudnn runs on NVIDIA GPUs .*; here: tpu, length 512"),
        ("cudnn", {"platform": "gpu"}, "no dropout on the probabilities"),
        ("cudnn", {"platform": "gpu", "dtype": "float32"}, "config.model.dtype=bfloat16"),
        ("splash", {}, "config.model.attention_probs_dropout_prob=0"),
        ("splash", {"dropping": False, "length": 500}, "multiples of 128"),
        ("splash", {"dropping": False, "platform": "gpu"}, "runs on TPUs alone"),
        ("fused", {"rng": "threefry"}, "config.model.dropout_rng=hash"),
        ("fused", {"length": 1024}, "lengths of 128, 256, 384 or 512"),
    ],
)
def test_what_cannot_work_is_named(implementation, changes, message):
    settings = USUAL | {"platform": "tpu", "length": 512} | changes
    with pytest.raises(UserError, match=message):
        attention.choose(implementation, **settings)


def test_a_tensor_axis_that_does_not_divide_the_heads_is_refused():
    mesh = jax.sharding.AbstractMesh((1, 1, 3), sharding.AXES)
    message = "config.mesh.tensor=3 does not divide the 4 attention heads: it may be 1, 2, 4"
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(ModelError, match=message):
        jax.eval_shape(attend, *inputs(32)[:3], inputs(32)[-1])


def test_unknown_implementation_is_named():
    with pytest.raises(UserError, match="attention 'flash' is not one of"):
        BertConfig(attention="flash")


def test_the_platform_is_that_of_the_mesh():
    device = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    tpu = jax.sharding.AbstractMesh((1, 1, 1), sharding.AXES, abstract_device=device)
    assert attention.platform_of(tpu) == "tpu"
    empty = jax.sharding.get_abstract_mesh()
    assert attention.platform_of(empty) == "cpu"


@pytest.mark.slow
def test_model_with_fused_attention_equals_xla_s():
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 100, (BATCH, 32))
    mask = inputs(32)[-1]
    params = heads.init_params(PretrainingModel(config), jax.random.key(0))

    def loss(params, implementation):
        model = PretrainingModel(dataclasses.replace(config, attention=implementation))
        output = model.apply({"params": params}, ids, mask, ids % 2, ids[:, :4] % 16, KEYS)
        return -jax.nn.log_softmax(output.mlm_logits_BMV)[..., 7].mean()

    for implementation, expected in (("xla", False), ("fused", True)):
        jaxpr = jax.make_jaxpr(loss, static_argnums=1)(params, implementation)
        assert ("pallas_call" in str(jaxpr)) == expected
    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, expected = value_and_grad(params, "xla")
    fused, gradients = value_and_grad(params, "fused")
    assert fused == pytest.approx(float(plain), rel=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), gradients, expected
    )


def test_a_fallback_of_auto_is_said_once(caplog):
    caplog.set_level("INFO")
    attention._say_once.cache_clear()
    for _ in range(12):  # layers
        assert attention.choose("auto", platform="tpu", length=1024, **USUAL) == "xla"
    (record,) = caplog.records
    assert "attention=auto takes xla: splash has no dropout" in record.message
    assert "; fused needs lengths of 128" in record.message
    caplog.clear()
    assert attention.choose("auto", platform="tpu", length=128, **USUAL) == "xla"  # the faster
    assert attention.choose("auto", platform="cpu", length=512, **USUAL) == "xla"
    assert not caplog.records
