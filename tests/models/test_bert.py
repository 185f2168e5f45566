"""The shortcuts change nothing: rows alone, matmuls, gradients written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.cli import UserError
from bert_jax.models.bert import BertConfig, BertModel
from bert_jax.models.layers.activations import ACTIVATIONS
from bert_jax.models.layers.dropout import dropout, dropout_keys
from bert_jax.models.layers.layer_norm import normalize
from bert_jax.models.layers.linear import dot_general
from bert_jax.parallel import sharding

BATCH, LENGTH = 3, 16
KEYS = dropout_keys(0, np.int32(3), BATCH)
ROWS = np.array([[0, 3, 9, 3], [0, 15, 1, 2], [0, 8, 9, 10]])
CONFIG = BertConfig(
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
    initializer_range=0.3,
)


@pytest.mark.parametrize("rng", ["hash", "threefry"])
@pytest.mark.parametrize("width", [8, 7])
@pytest.mark.parametrize("between", [(), (4,)], ids=["hidden states", "probabilities"])
def test_rows_alone_drop_what_they_would_among_all(rng, width, between):
    x = np.ones((BATCH, *between, LENGTH, width), np.float32)
    whole = np.asarray(dropout(x, KEYS, 0.3, 5, rng))
    expected = np.stack([np.take(w, rows, axis=-2) for w, rows in zip(whole, ROWS, strict=True)])
    found = dropout(x[..., : ROWS.shape[1], :], KEYS, 0.3, 5, rng, ROWS, LENGTH)
    assert 0.2 < (expected == 0).mean() < 0.4
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rng", ["hash", "threefry"])
@pytest.mark.parametrize("packed", [False, True])
def test_positions_read_alone_equal_those_of_all(rng, packed):
    config = dataclasses.replace(CONFIG, dropout_rng=rng)
    ids = np.random.default_rng(0).integers(5, 100, (BATCH, LENGTH))
    mask = np.ones((BATCH, LENGTH), np.int32)
    mask[1, 12:] = 0
    extra = ()
    if packed:
        mask[:, 8:] *= 2
        extra = (np.arange(LENGTH)[None] % 8 + mask * 0, np.full((BATCH, 2), (0, 8)))
    module = BertModel(config)
    params = module.init(jax.random.key(0), ids, mask, mask * 0)["params"]

    def loss(params, rows):
        hidden, pooled = module.apply(
            {"params": params}, ids, mask, ids % 2, KEYS, *extra, read_positions_BM=rows
        )
        if rows is None:
            hidden = hidden[np.arange(BATCH)[:, None], ROWS]
        return jnp.sum(jnp.sin(hidden)) + jnp.sum(jnp.cos(pooled)), (hidden, pooled)

    grad = jax.value_and_grad(loss, has_aux=True)
    (_, whole), whole_gradients = grad(params, None)
    (_, read), read_gradients = grad(params, ROWS)
    for x, y in zip(read, whole, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), read_gradients, whole_gradients
    )


def test_last_layer_computes_little_beyond_the_positions_read():
    ids = np.ones((BATCH, 256), np.int32)
    config = dataclasses.replace(CONFIG, num_hidden_layers=1, max_position_embeddings=256)
    module = BertModel(config)
    params = module.init(jax.random.key(0), ids, ids, ids)["params"]

    def flops(rows) -> float:
        apply = jax.jit(
            lambda p: module.apply({"params": p}, ids, ids, ids, read_positions_BM=rows)
        )
        return apply.lower(params).compile().cost_analysis()["flops"]

    assert flops(ROWS) < 0.35 * flops(None)  # keys and values are two of twelve squares


def over(device_kind: str, platform: str) -> str:
    """The jaxpr of `dot_general` on a mesh of these devices."""
    device = jax.sharding.AbstractDevice(device_kind, 1, platform)
    mesh = jax.sharding.AbstractMesh((1, 1, 1), sharding.AXES, abstract_device=device)
    x, kernel = np.ones((2, 8, 4), np.float32), np.ones((4, 5), np.float32)
    with jax.sharding.use_abstract_mesh(mesh):
        return str(jax.make_jaxpr(lambda x: dot_general(x, kernel, (((2,), (0,)), ((), ()))))(x))


def test_matmuls_on_a_cpu_are_of_two_matrices():
    x = np.random.default_rng(0).standard_normal((2, 8, 4)).astype(np.float32)
    kernel = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    found = dot_general(x, kernel, (((2,), (1,)), ((), ())))
    np.testing.assert_allclose(found, x @ kernel.T, atol=1e-6)
    assert "f32[16,5] = dot_general" in over("cpu", "cpu")
    assert "f32[2,8,5] = dot_general" in over("TPU v5 lite", "tpu")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_attention_heads", 0, "num_attention_heads 0 is less than 1"),
        ("num_hidden_layers", 0, "num_hidden_layers 0 is less than 1"),
        ("num_attention_heads", 5, "hidden_size 768 is not a multiple of num_attention_heads 5"),
        ("hidden_dropout_prob", 1.0, "hidden_dropout_prob 1.0 is not from 0 to below 1"),
        ("attention_probs_dropout_prob", -0.1, "attention_probs_dropout_prob -0.1 is not"),
    ],
)
def test_impossible_models_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        BertConfig(**{field: value})


def test_layer_norm_and_its_gradients_are_torch_s():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (3, 5, 32)).astype(np.float32)
    weights = rng.standard_normal(x.shape).astype(np.float32)
    scale, bias = rng.standard_normal((2, 32)).astype(np.float32)
    gradients = jax.grad(lambda *args: jnp.sum(normalize(*args, 1e-12) * weights), (0, 1, 2))
    x_, scale_, bias_ = (torch.tensor(a, requires_grad=True) for a in (x, scale, bias))
    y_ = torch.nn.functional.layer_norm(x_, (32,), scale_, bias_, 1e-12)
    (y_ * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(normalize(x, scale, bias, 1e-12), y_.detach(), atol=1e-5)
    for found, expected in zip(gradients(x, scale, bias), (x_, scale_, bias_), strict=True):
        np.testing.assert_allclose(found, expected.grad, atol=1e-5)
    # In bfloat16 what comes in and goes out is rounded, and nothing in between.
    x = jnp.asarray(x, jnp.bfloat16)
    exact = normalize(x.astype(jnp.float32), scale, bias, 1e-12)
    np.testing.assert_array_equal(normalize(x, scale, bias, 1e-12), exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gelu", "gelu_pytorch_tanh"])
def test_gelu_and_its_gradient_are_torch_s(name, dtype):
    torch = pytest.importorskip("torch")
    x = np.concatenate([np.linspace(-12, 12, 2001), [-100, 0, 100]]).astype(np.float32)
    x_ = torch.tensor(x).to(getattr(torch, dtype)).requires_grad_()
    approximate = "tanh" if name.endswith("tanh") else "none"
    y_ = torch.nn.functional.gelu(x_, approximate=approximate)
    y_.sum().backward()
    y, vjp = jax.vjp(ACTIVATIONS[name], jnp.asarray(x, dtype))
    (slope,) = vjp(jnp.ones_like(y))
    assert y.dtype == slope.dtype == dtype
    relative = {"float32": 1e-6, "bfloat16": 2**-7}[dtype]  # the last digit of bfloat16
    for found, expected in ((y, y_.detach()), (slope, x_.grad)):
        expected = expected.float().numpy()
        np.testing.assert_allclose(found.astype(np.float32), expected, relative, 5e-6)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_remat_of_all_but_matmuls_does_not_keep_attentions_scores(remat):
    """They are matmuls too, and larger than all else that a layer computes."""
    batch, length = 2, 64
    config = dataclasses.replace(CONFIG, max_position_embeddings=length, remat=remat)
    model, ids = BertModel(config), np.zeros((batch, length), np.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids, ids, ids)["params"]

    def backward(params):
        return jax.vjp(lambda x: model.apply({"params": x}, ids, ids + 1, ids)[0], params)[1]

    kept = [x.shape for x in jax.tree.leaves(jax.eval_shape(backward, params))]
    assert (batch, config.num_attention_heads, length, length) in kept or remat != "none"
    assert not (remat != "none" and any(shape[-2:] == (length, length) for shape in kept))
    # "dots" keeps the layers' matmuls, "full" does not.
    rows = {(batch * length, config.intermediate_size), (batch, length, config.intermediate_size)}
    assert bool(rows & set(kept)) == (remat != "full")
