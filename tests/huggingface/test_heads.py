"""Every encoder with every head against transformers in torch: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from small_models import TASKS, random_model
from small_run import ENCODERS

from bert_jax import convert
from bert_jax.huggingface import config_json, tensors
from bert_jax.huggingface.keys import PRETRAINING, TABLES
from bert_jax.models import architectures, heads
from bert_jax.runs import checkpoint
from bert_jax.tasks import kinds

torch = pytest.importorskip("torch")

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
MODERN = {
    **{"num_hidden_layers": 5, "local_attention": 8, "pad_token_id": 0},
    **{"global_rope_theta": 500.0, "local_rope_theta": 100.0},
    **dict.fromkeys(("bos_token_id", "cls_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
}
# Architecture -> what its small config has besides SIZES; other than the defaults where it matters.
CONFIGS = {
    "roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    # With a position per pad, a layer's ReLU, and two segments: of the head and the embeddings.
    "roberta, relu": {"hidden_act": "relu", "type_vocab_size": 2, "pad_token_id": 3},
    # A window of 4 to each side, layers of both kinds, and bases that matter at 20 tokens.
    "modernbert": MODERN | {"classifier_pooling": "cls"},
    "modernbert, mean": MODERN | {"classifier_pooling": "mean", "global_attn_every_n_layers": 2},
}
BATCH, LENGTH = 4, 20
CASES = [
    pytest.param(name, row.name, attention, marks=[] if fast else [pytest.mark.slow])
    for name in CONFIGS
    for row in TABLES[name.partition(",")[0]].classes
    for attention in ("eager", "sdpa")
    for fast in [
        (name, row.name, attention)
        in (
            ("roberta", "RobertaForSequenceClassification", "eager"),
            ("modernbert", "ModernBertForMaskedLM", "sdpa"),
        )
    ]
]


def torch_model(name, class_name, attention):
    """transformers' class with every parameter perturbed, so that all of them matter."""
    prefix = class_name.partition("For")[0].removesuffix("Model")
    num_labels = 2 if class_name.endswith("QuestionAnswering") else 5
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings["num_labels"] = num_labels
    config = getattr(transformers, f"{prefix}Config")(**settings | SIZES | CONFIGS[name])
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch_of(pad_id, segments):
    """A full row; padding behind; padding inside; padding before."""
    rng = np.random.default_rng(0)
    mask_BL = np.ones((BATCH, LENGTH), np.int32)
    mask_BL[1, 13:] = mask_BL[2, 6:9] = mask_BL[3, :7] = 0
    ids_BL = rng.integers(4, SIZES["vocab_size"], (BATCH, LENGTH))
    ids_BL = np.where(mask_BL > 0, ids_BL, pad_id).astype(np.int32)
    types_BL = (np.arange(LENGTH) > 8).astype(np.int32) * mask_BL
    return ids_BL, mask_BL, np.minimum(types_BL, segments - 1)


def flax_model(directory, theirs, class_name):
    """(module, parameters, encoder's config) of what transformers would save."""
    theirs.config.architectures = [class_name]
    theirs.config.save_pretrained(directory)
    described = config_json.read(directory / "config.json")
    assert described.class_name == class_name
    stored = {key: x.numpy() for key, x in theirs.state_dict().items()}
    params = tensors.from_tensors(stored, described.model, class_name)
    if described.task == PRETRAINING:
        module = heads.PretrainingModel(described.model)
        if class_name.endswith("Model"):
            architecture = architectures.of(described.model)
            module, params = architecture.encoder(described.model), params[architecture.prefix]
    else:
        module = kinds.make_module(described.task, described.model, 5)
    return module, params, described.model


@pytest.mark.parametrize(
    ("encoder", "task", "labels"),
    [
        pytest.param(
            encoder,
            *task,
            marks=[] if (encoder, task[0]) == ("modernbert", "pretraining") else pytest.mark.slow,
        )
        for encoder in ("roberta", "modernbert")
        for task in TASKS
    ],
)
def test_to_transformers_and_back_changes_no_bit(encoder, task, labels, tmp_path):
    """The export compares itself with what transformers computes from it, tokenizer included."""
    fields = {"architecture": encoder, **ENCODERS[encoder]}
    workdir, exported = random_model(tmp_path / "model", task, labels, fields=fields)
    convert.from_hugging_face(exported, tmp_path / "back")
    before, after = (checkpoint.load(x) for x in (workdir, tmp_path / "back"))
    model = architectures.make_config(before.config.model)
    assert architectures.make_config(after.config.model) == model
    # As transformers' arrays, which have no rows for the padding of the vocabulary.
    first, second = (tensors.to_tensors(x.params, model) for x in (before, after))
    assert first.keys() == second.keys()
    for key, x in first.items():
        np.testing.assert_array_equal(x, second[key], err_msg=key)


@pytest.mark.parametrize(("name", "class_name", "attention"), CASES)
def test_outputs_and_gradients(name, class_name, attention, tmp_path, one_thread):
    theirs = torch_model(name, class_name, attention)
    module, params, model = flax_model(tmp_path, theirs, class_name)
    model_type = name.partition(",")[0]
    table = TABLES[model_type]
    arrays = batch_of(getattr(theirs.config, "pad_token_id", 0), model.type_vocab_size)
    is_choice = class_name.endswith("MultipleChoice")
    inputs = [x.reshape(2, 2, LENGTH) for x in arrays] if is_choice else arrays
    names = ("input_ids", "attention_mask", "token_type_ids")
    named = {key: torch.from_numpy(x).long() for key, x in zip(names, inputs, strict=True)}
    if model_type == "modernbert":
        del named["token_type_ids"]
    output = theirs(**named)
    head_class = table.head_class(class_name)
    expected = [getattr(output, key) for _, keys in head_class.outputs for key in keys]
    if not head_class.outputs:
        pooled = getattr(output, "pooler_output", output.last_hidden_state[:, 0])
        expected = [output.last_hidden_state, pooled]

    def apply(params):
        result = module.apply({"params": params}, *inputs)
        if not head_class.outputs:
            return list(result)
        if class_name.endswith("MaskedLM"):
            return [result.mlm_logits_BMV[..., : model.vocab_size]]
        if class_name.endswith("QuestionAnswering"):
            return [result[..., 0], result[..., 1]]
        return [result]

    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(x.shape).astype(np.float32) for x in expected]
    for w in weights:
        if w.shape[1:2] == (LENGTH,):
            w[arrays[1] == 0] = 0  # used by nobody, and differs between implementations
        else:
            # transformers lets no gradient through to a text's first token where it is padding.
            w.reshape(BATCH, -1)[3] = 0

    def loss(params):
        outputs = apply(params)
        return sum(jnp.sum(x * w) for x, w in zip(outputs, weights, strict=True)), outputs

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for x, y, w in zip(found, expected, weights, strict=True):
        # ModernBERT's padding may see nothing at all, and what attention gives then is anything.
        is_compared = w != 0 if w.shape[1:2] == (LENGTH,) or model_type == "modernbert" else ...
        difference = np.abs(np.asarray(x) - y.detach().numpy())[is_compared].max()
        assert difference <= 1e-5, difference

    sum((x * torch.from_numpy(w)).sum() for x, w in zip(expected, weights, strict=True)).backward()
    if class_name.endswith("Model"):
        gradients = {architectures.of(model).prefix: gradients}
    gradients = tensors.to_tensors(jax.device_get(gradients), model)
    prefix = "" if not class_name.endswith("Model") else f"{table.prefix}."
    reference = {prefix + key: x.grad.numpy() for key, x in theirs.named_parameters()}
    assert gradients.keys() == reference.keys()
    # A key's bias shifts all scores of a query alike: its true gradient is 0, both sides' noise.
    scale = {key: np.linalg.norm(x) for key, x in reference.items()}
    errors = {
        key: np.linalg.norm(gradients[key] - x) / scale[key.replace(".key.bias", ".query.bias")]
        for key, x in reference.items()
    }
    worst = max(errors, key=errors.get)
    assert errors[worst] <= 1e-4, (worst, errors[worst])
