"""The model against Hugging Face's in torch: every output, and every parameter's gradient."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from bert_jax.huggingface import tensors as hf_tensors
from bert_jax.models import heads
from bert_jax.models.bert import BertConfig, BertModel
from bert_jax.models.stacking import stack_layers, unstack_layers
from bert_jax.objectives.mlm import pretraining_objective

torch = pytest.importorskip("torch")

SIZES = {  # layers, width, heads, feed-forward; batch, length (short where the model is large)
    "tiny": (2, 128, 2, 512, 6, 48),
    "mini": (4, 256, 4, 1024, 4, 48),
    "base": (12, 768, 12, 3072, 2, 32),
}
TOLERANCE = 1e-4


def make_config(size, hidden_act="gelu_pytorch_tanh"):
    layers, width, num_heads, feed_forward, _, _ = SIZES[size]
    return BertConfig(
        vocab_size=30522 if size == "base" else 1000,  # 1000: padded to 1024
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=num_heads,
        intermediate_size=feed_forward,
        max_position_embeddings=512 if size == "base" else 64,
        hidden_act=hidden_act,
    )


def random_params(config):
    """Weights of the usual scale; biases and LayerNorms random too, so that all of them matter."""
    ids = np.zeros((1, 8), np.int32)
    module = heads.PretrainingModel(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
    rng = np.random.default_rng(0)

    def draw(path, x):
        values = rng.normal(0, 0.02, x.shape).astype(np.float32)
        return values + 1 if path[-1].key == "scale" else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_batch(config, size):
    """A pretraining batch with padding, two segments, unused prediction slots."""
    batch, length, masked = *SIZES[size][4:], 5
    rng = np.random.default_rng(1)
    lengths_B = np.linspace(length, length // 2, batch).astype(int)
    mask_BL = np.arange(length) < lengths_B[:, None]
    segments_BL = (np.arange(length) >= lengths_B[:, None] // 2) & mask_BL
    positions_BM = np.stack([np.sort(rng.choice(n, masked, replace=False)) for n in lengths_B])
    weights_BM = np.ones((batch, masked))
    weights_BM[-1, 3:] = 0
    return {
        "input_ids": (rng.integers(5, config.vocab_size, (batch, length)) * mask_BL).astype("i4"),
        "attention_mask": mask_BL.astype("i4"),
        "token_type_ids": segments_BL.astype("i4"),
        "masked_lm_positions": positions_BM.astype("i4"),
        "masked_lm_ids": rng.integers(5, config.vocab_size, (batch, masked)).astype("i4"),
        "masked_lm_weights": weights_BM.astype("f4"),
        "next_sentence_labels": rng.integers(0, 2, batch).astype("i4"),
    }


def torch_model(config, params):
    """transformers' BertForPreTraining with our parameters, every one of them set."""
    sizes = {
        field: value
        for field, value in dataclasses.asdict(config).items()
        if field not in ("dtype", "attention", "scan_layers", "remat")
    }
    hf = transformers.BertConfig(
        **sizes | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        attn_implementation="eager",
    )
    model = transformers.BertForPreTraining(hf)
    tensors = {
        key: torch.from_numpy(x.copy()) for key, x in hf_tensors.to_tensors(params, config).items()
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert all("decoder" in key for key in missing) and not unexpected
    model.tie_weights()
    return model


def torch_batch(batch):
    """What transformers wants: labels at every position, -100 where nothing is predicted."""
    labels_BL = np.full(batch["input_ids"].shape, -100)
    for row, (positions, ids, weights) in enumerate(
        zip(
            batch["masked_lm_positions"],
            batch["masked_lm_ids"],
            batch["masked_lm_weights"],
            strict=True,
        )
    ):
        labels_BL[row, positions[weights > 0]] = ids[weights > 0]
    arrays = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "token_type_ids": batch["token_type_ids"],
        "labels": labels_BL,
        "next_sentence_label": batch["next_sentence_labels"],
    }
    return {name: torch.from_numpy(np.asarray(x, np.int64)) for name, x in arrays.items()}


def ours(config, params, batch):
    """(loss, (outputs, all hidden states), gradients) of the objective, dropout off."""
    module = heads.PretrainingModel(config)
    objective = pretraining_objective(module)
    names = ("input_ids", "attention_mask", "token_type_ids", "masked_lm_positions")

    def loss(params):
        sums, weights = objective.sums(params, batch, None), objective.weights(batch)
        total = sum(sums[name] / weights[name] for name in objective.losses)
        inputs = tuple(batch[name] for name in names)
        outputs = module.apply({"params": params}, *inputs)
        # Without the positions to score, the hidden states are those of all positions.
        hidden_BLD, _ = BertModel(config).apply({"params": params["bert"]}, *inputs[:3])
        return total, (outputs, hidden_BLD)

    (total, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    gradients = unstack_layers(jax.device_get(gradients))
    return float(total), jax.device_get(outputs), hf_tensors.to_tensors(gradients, config)


@pytest.mark.parametrize(
    ("size", "scan_layers"),
    [
        *(("tiny", False), ("mini", False), ("mini", True)),
        pytest.param("base", False, marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients(size, scan_layers):
    config = make_config(size)
    params, batch = random_params(config), random_batch(config, size)
    model = torch_model(config, params)
    theirs = model(**torch_batch(batch), output_hidden_states=True)
    theirs.loss.backward()
    if scan_layers:
        config, params = dataclasses.replace(config, scan_layers=True), stack_layers(params)
    loss, (outputs, hidden_BLD), gradients = ours(config, params, batch)

    # Outputs.
    hidden = theirs.hidden_states[-1]
    rows_B1 = np.arange(len(batch["input_ids"]))[:, None]
    expected = {
        "hidden": (hidden_BLD, hidden),
        "hidden, masked": (outputs.hidden_BLD, hidden[rows_B1, batch["masked_lm_positions"]]),
        "pooled": (outputs.pooled_BD, model.bert.pooler(hidden)),
        "mlm_logits": (
            outputs.mlm_logits_BMV[..., : config.vocab_size],
            theirs.prediction_logits[rows_B1, batch["masked_lm_positions"]],
        ),
        "nsp_logits": (outputs.nsp_logits_B2, theirs.seq_relationship_logits),
    }
    worst_output = max(
        (float(np.abs(x - y.detach().numpy()).max()), name) for name, (x, y) in expected.items()
    )
    assert worst_output[0] <= TOLERANCE, worst_output
    assert np.all(outputs.mlm_logits_BMV[..., config.vocab_size :] <= -1e29)

    # Loss and gradients, relative to each tensor's norm.
    assert loss == pytest.approx(theirs.loss.item(), abs=1e-5)
    reference = {name: x.grad.numpy() for name, x in model.named_parameters()}
    assert gradients.keys() == reference.keys()

    def error(key):
        # A key's bias shifts all scores of a query alike, so its true gradient is 0 and both sides
        # hold rounding noise: measured against the gradient of the query's bias.
        scale = np.linalg.norm(reference[key.replace(".key.bias", ".query.bias")])
        return float(np.linalg.norm(gradients[key] - reference[key]) / scale)

    worst_gradient = max((error(key), key) for key in gradients)
    assert worst_gradient[0] <= TOLERANCE, worst_gradient
    print(f"{size}: worst output {worst_output}, worst gradient {worst_gradient}")


def test_exact_gelu():
    """hidden_act="gelu" is the erf form, as Hugging Face's released checkpoints have it."""
    config = make_config("tiny", hidden_act="gelu")
    config = dataclasses.replace(config, num_hidden_layers=1)
    params, batch = random_params(config), random_batch(config, "tiny")
    params["bert"]["encoder"]["layer_0"]["intermediate"]["kernel"] *= 20  # where the forms differ
    theirs = torch_model(config, params)(**torch_batch(batch)).loss.item()
    assert ours(config, params, batch)[0] == pytest.approx(theirs, abs=1e-6)
    tanh = dataclasses.replace(config, hidden_act="gelu_pytorch_tanh")
    assert ours(tanh, params, batch)[0] != pytest.approx(theirs, abs=1e-6)
