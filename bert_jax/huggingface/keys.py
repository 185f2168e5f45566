"""How transformers names things: classes, settings and arrays of each encoder; tables alone.

A row of `TABLES` says all that the rest of the package needs to read and write an encoder. It is
read in both directions by `bert_jax/huggingface/tensors.py` (arrays) and `files.py` (settings).
"""

import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# How a module's arrays are called and laid out on each side: (our name, theirs, transform).
#   TRANSPOSE: our kernels are [in, out], torch's weights [out, in].
#   UNPAD: we pad the vocabulary to a multiple of 128, Hugging Face does not.
#   Slice: TRANSPOSE of one of several equal parts of theirs, which holds several of ours.
SAME, TRANSPOSE, UNPAD = "same", "transpose", "unpad"


class Slice(NamedTuple):
    """Rows [i / n, (i + 1) / n) of a weight [out, in] of torch, as a kernel [in, out / n]."""

    i: int
    n: int


Transform = str | Slice
Kind = tuple[tuple[str, str, Transform], ...]
DENSE: Kind = (("/kernel", ".weight", TRANSPOSE), ("/bias", ".bias", SAME))
LAYER_NORM: Kind = (("/scale", ".weight", SAME), ("/bias", ".bias", SAME))
MATRIX: Kind = (("/kernel", ".weight", TRANSPOSE),)
SCALE: Kind = (("/scale", ".weight", SAME),)
EMBEDDING: Kind = (("/embedding", ".weight", SAME),)
VOCABULARY: Kind = (("/embedding", ".weight", UNPAD),)
OUTPUT_BIAS: Kind = (("", "", UNPAD),)

PRETRAINING = "pretraining"  # the task of a model without a fine-tuned head


class HeadClass(NamedTuple):
    """A class of transformers: an encoder with one head, or with those of pretraining.

    Attributes:
      name: of the class.
      tasks: of the checkpoints that it holds; the first is what config.json alone stands for.
      parts: what it has besides the encoder.
      outputs: (name of our output, names of theirs that are stacked along a last axis for it).
      pipeline: what the hub calls its use.
      optional: parts that it may have too.
    """

    name: str
    tasks: tuple[str, ...]
    parts: tuple[str, ...]
    outputs: tuple[tuple[str, tuple[str, ...]], ...]
    pipeline: str
    optional: tuple[str, ...] = ()


class KeyTable(NamedTuple):
    """An encoder in transformers.

    Attributes:
      model_type: as config.json names it.
      prefix: of the encoder's keys in a class with a head; a bare encoder's keys lack it.
      parts: part -> rows of (our module, their module, its kind), {i} counting the layers.
      tied: (key, key that it must equal): arrays that a directory may hold twice.
      classes: those of pretraining from the largest to the bare encoder, then the heads.
      settings: of config.json that can have one value only here.
      defaults: of fields that config.json lacks, where they are others than our config class's.
      renamed: our field -> theirs, in config.json.
      read_fields: config.json -> the fields that it says in another form, by our names.
      write_fields: our fields -> what config.json says in another form, besides.
      aliases: model types that are the same encoder -> what their classes' names begin with.
    """

    model_type: str
    prefix: str
    parts: Mapping[str, tuple[tuple[str, str, Kind], ...]]
    tied: tuple[tuple[str, str], ...]
    classes: tuple[HeadClass, ...]
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    renamed: Mapping[str, str] = types.MappingProxyType({})
    read_fields: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    write_fields: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda fields: {}
    aliases: Mapping[str, str] = types.MappingProxyType({})

    def head_class(self, name: str) -> HeadClass | None:
        """The class of that name, if it is known here; of an alias's, the one that equals it."""
        own = self.classes[-1].name.partition("For")[0]
        for alias in self.aliases.values():
            name = re.sub(rf"^{alias}(?=For|Model)", own, name)
        return next((row for row in self.classes if row.name == name), None)


_LOGITS = (("logits", ("logits",)),)
_MLM_LOGITS = (("mlm_logits", ("logits",)),)
Parts = dict[str, tuple[tuple[str, str, Kind], ...]]


def _bert_encoder(prefix: str) -> Parts:
    """The parts that BERT and its kin have under their prefix, the same on both sides."""
    embeddings, layer = f"{prefix}/embeddings", f"{prefix}/encoder/layer_{{i}}"
    their_embeddings, their_layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{i}}"
    attention, their_attention = f"{layer}/attention", f"{their_layer}.attention"
    tables = (("word", VOCABULARY), ("position", EMBEDDING), ("token_type", EMBEDDING))
    return {
        "encoder": (
            *(
                (f"{embeddings}/{name}_embeddings", f"{their_embeddings}.{name}_embeddings", kind)
                for name, kind in tables
            ),
            (f"{embeddings}/layer_norm", f"{their_embeddings}.LayerNorm", LAYER_NORM),
            *(
                (f"{attention}/{name}", f"{their_attention}.self.{name}", DENSE)
                for name in ("query", "key", "value")
            ),
            (f"{attention}/output", f"{their_attention}.output.dense", DENSE),
            (f"{layer}/attention_layer_norm", f"{their_attention}.output.LayerNorm", LAYER_NORM),
            (f"{layer}/intermediate", f"{their_layer}.intermediate.dense", DENSE),
            (f"{layer}/output", f"{their_layer}.output.dense", DENSE),
            (f"{layer}/output_layer_norm", f"{their_layer}.output.LayerNorm", LAYER_NORM),
        ),
        "pooler": ((f"{prefix}/pooler", f"{prefix}.pooler.dense", DENSE),),
    }


def _task_classes(
    name: str, text: tuple[str, ...], tokens: tuple[str, ...], choices: tuple[str, ...], span: str
) -> tuple[HeadClass, ...]:
    """The classes of fine-tuned models: those of transformers' names, with these parts."""
    return (
        HeadClass(
            f"{name}ForSequenceClassification",
            ("text_classification", "text_regression", "multi_label_classification"),
            text,
            _LOGITS,
            "text-classification",
        ),
        HeadClass(
            f"{name}ForTokenClassification",
            ("token_classification",),
            tokens,
            _LOGITS,
            "token-classification",
        ),
        HeadClass(
            f"{name}ForQuestionAnswering",
            ("question_answering",),
            (*tokens[:-1], span),
            (("logits", ("start_logits", "end_logits")),),
            "question-answering",
        ),
        HeadClass(
            f"{name}ForMultipleChoice", ("multiple_choice",), choices, _LOGITS, "multiple-choice"
        ),
    )


BERT = KeyTable(
    model_type="bert",
    prefix="bert",
    # The decoder of the MLM head is the word embedding, so it has no row.
    parts={
        **_bert_encoder("bert"),
        "MLM head": (
            ("mlm_transform", "cls.predictions.transform.dense", DENSE),
            ("mlm_layer_norm", "cls.predictions.transform.LayerNorm", LAYER_NORM),
            ("mlm_bias", "cls.predictions.bias", OUTPUT_BIAS),
        ),
        "NSP head": (("nsp_classifier", "cls.seq_relationship", DENSE),),
        "classifier": (("classifier", "classifier", DENSE),),
        "span classifier": (("span_classifier", "qa_outputs", DENSE),),
    },
    tied=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    classes=(
        HeadClass(
            "BertForPreTraining",
            (PRETRAINING,),
            ("pooler", "MLM head", "NSP head"),
            (
                ("mlm_logits", ("prediction_logits",)),
                ("nsp_logits", ("seq_relationship_logits",)),
            ),
            "fill-mask",
        ),
        HeadClass("BertForMaskedLM", (PRETRAINING,), ("MLM head",), _MLM_LOGITS, "fill-mask"),
        HeadClass(
            "BertForNextSentencePrediction",
            (PRETRAINING,),
            ("pooler", "NSP head"),
            (("nsp_logits", ("logits",)),),
            "feature-extraction",
        ),
        HeadClass("BertModel", (PRETRAINING,), (), (), "feature-extraction", optional=("pooler",)),
        *_task_classes(
            "Bert",
            text=("pooler", "classifier"),
            tokens=("classifier",),
            choices=("pooler", "classifier"),
            span="span classifier",
        ),
    ),
    settings={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "tie_word_embeddings": True,
    },
    # Those of the config class here are transformers' too, but for the GELU's form.
    defaults={"hidden_act": "gelu"},
)

ROBERTA = KeyTable(
    model_type="roberta",
    prefix="roberta",
    parts={
        **_bert_encoder("roberta"),
        "MLM head": (
            ("mlm_transform", "lm_head.dense", DENSE),
            ("mlm_layer_norm", "lm_head.layer_norm", LAYER_NORM),
            ("mlm_bias", "lm_head.bias", OUTPUT_BIAS),
        ),
        "text classifier": (
            ("classifier_dense", "classifier.dense", DENSE),
            ("classifier", "classifier.out_proj", DENSE),
        ),
        "classifier": (("classifier", "classifier", DENSE),),
        "span classifier": (("span_classifier", "qa_outputs", DENSE),),
    },
    tied=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    classes=(
        HeadClass(
            "RobertaForMaskedLM",
            (PRETRAINING,),
            ("MLM head",),
            _MLM_LOGITS,
            "fill-mask",
            optional=("pooler",),
        ),
        HeadClass(
            "RobertaModel", (PRETRAINING,), (), (), "feature-extraction", optional=("pooler",)
        ),
        *_task_classes(
            "Roberta",
            text=("text classifier",),
            tokens=("classifier",),
            choices=("pooler", "classifier"),
            span="span classifier",
        ),
    ),
    settings=BERT.settings,
    defaults={
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
    aliases={"xlm-roberta": "XLMRoberta", "camembert": "Camembert"},
)

_MODERN = "modernbert/encoder/layer_{i}"
_THEIR_MODERN = "model.layers.{i}"
# Window and positions of each kind of layer: transformers 5's names, and our fields.
_ROPE = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def _sliced(n: int, i: int) -> Kind:
    return (("/kernel", ".weight", Slice(i, n)),)


def _kinds_of_layers(count: int, every: int) -> list[str]:
    return ["sliding_attention" if i % every else "full_attention" for i in range(count)]


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that transformers 5 has as lists and dicts; those of 4.57 have our names.

    Raises:
      ValueError: layers or positions in another pattern.
    """
    fields: dict[str, Any] = {}
    if kinds := config.get("layer_types"):
        apart = next((i for i in range(1, len(kinds)) if kinds[i] == "full_attention"), len(kinds))
        every = config.get("global_attn_every_n_layers", apart)
        if kinds != _kinds_of_layers(len(kinds), every):
            raise ValueError(f"layer_types is {kinds}, expected full_attention in every n-th layer")
        fields["global_attn_every_n_layers"] = every
    for kind, parameters in (config.get("rope_parameters") or {}).items():
        if kind not in _ROPE or parameters.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters has {kind}: {parameters}, expected default RoPE")
        fields[_ROPE[kind]] = float(parameters["rope_theta"])
    if config.get("local_rope_theta", 0) is None and "local_rope_theta" not in fields:
        fields["local_rope_theta"] = config["global_rope_theta"]
    return fields


def _write_rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers 5 reads, which silently skips the names of 4.57."""
    every = fields["global_attn_every_n_layers"]
    return {
        "layer_types": _kinds_of_layers(fields["num_hidden_layers"], every),
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": fields[field]}
            for kind, field in _ROPE.items()
        },
    }


MODERNBERT = KeyTable(
    model_type="modernbert",
    prefix="model",
    parts={
        "encoder": (
            (
                "modernbert/embeddings/word_embeddings",
                "model.embeddings.tok_embeddings",
                VOCABULARY,
            ),
            ("modernbert/embeddings/layer_norm", "model.embeddings.norm", SCALE),
            (f"{_MODERN}/attention_layer_norm", f"{_THEIR_MODERN}.attn_norm", SCALE),
            *(
                (f"{_MODERN}/attention/{name}", f"{_THEIR_MODERN}.attn.Wqkv", _sliced(3, i))
                for i, name in enumerate(("query", "key", "value"))
            ),
            (f"{_MODERN}/attention/output", f"{_THEIR_MODERN}.attn.Wo", MATRIX),
            (f"{_MODERN}/mlp_layer_norm", f"{_THEIR_MODERN}.mlp_norm", SCALE),
            (f"{_MODERN}/intermediate", f"{_THEIR_MODERN}.mlp.Wi", _sliced(2, 0)),
            (f"{_MODERN}/gate", f"{_THEIR_MODERN}.mlp.Wi", _sliced(2, 1)),
            (f"{_MODERN}/output", f"{_THEIR_MODERN}.mlp.Wo", MATRIX),
            ("modernbert/encoder/final_layer_norm", "model.final_norm", SCALE),
        ),
        "head": (
            ("mlm_transform", "head.dense", MATRIX),
            ("mlm_layer_norm", "head.norm", SCALE),
        ),
        "MLM bias": (("mlm_bias", "decoder.bias", OUTPUT_BIAS),),
        "classifier": (("classifier", "classifier", DENSE),),
        "span classifier": (("span_classifier", "classifier", DENSE),),
    },
    tied=(("decoder.weight", "model.embeddings.tok_embeddings.weight"),),
    classes=(
        HeadClass(
            "ModernBertForMaskedLM",
            (PRETRAINING,),
            ("head", "MLM bias"),
            _MLM_LOGITS,
            "fill-mask",
        ),
        HeadClass("ModernBertModel", (PRETRAINING,), (), (), "feature-extraction"),
        *_task_classes(
            "ModernBert",
            text=("head", "classifier"),
            tokens=("head", "classifier"),
            choices=("head", "classifier"),
            span="span classifier",
        ),
    ),
    settings={
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "decoder_bias": True,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "tie_word_embeddings": True,
    },
    defaults={"classifier_pooling": "cls"},
    renamed={"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
    read_fields=_read_rope,
    write_fields=_write_rope,
)

# By the name of the encoder in bert_jax/models/architectures.py.
TABLES = {"bert": BERT, "roberta": ROBERTA, "modernbert": MODERNBERT}
