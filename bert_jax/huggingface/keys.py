"""How transformers names things: classes, settings and arrays of each encoder; tables alone.

A row of `TABLES` says all that the rest of the package needs to read and write an encoder. It is
read in both directions by `bert_jax/huggingface/tensors.py` (arrays) and `files.py` (settings).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

# How a module's arrays are called and laid out on each side: (our name, theirs, transform).
#   TRANSPOSE: our kernels are [in, out], torch's weights [out, in].
#   UNPAD: we pad the vocabulary to a multiple of 128, Hugging Face does not.
SAME, TRANSPOSE, UNPAD = "same", "transpose", "unpad"
Kind = tuple[tuple[str, str, str], ...]
DENSE: Kind = (("/kernel", ".weight", TRANSPOSE), ("/bias", ".bias", SAME))
LAYER_NORM: Kind = (("/scale", ".weight", SAME), ("/bias", ".bias", SAME))
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
    """

    model_type: str
    prefix: str
    parts: Mapping[str, tuple[tuple[str, str, Kind], ...]]
    tied: tuple[tuple[str, str], ...]
    classes: tuple[HeadClass, ...]
    settings: Mapping[str, Any]

    def head_class(self, name: str) -> HeadClass | None:
        """The class of that name, if it is known here."""
        return next((row for row in self.classes if row.name == name), None)


_LAYER = "bert/encoder/layer_{i}"
_THEIR_LAYER = "bert.encoder.layer.{i}"
_LOGITS = (("logits", ("logits",)),)

BERT = KeyTable(
    model_type="bert",
    prefix="bert",
    # The decoder of the MLM head is the word embedding, so it has no row.
    parts={
        "encoder": (
            (
                "bert/embeddings/word_embeddings",
                "bert.embeddings.word_embeddings",
                VOCABULARY,
            ),
            (
                "bert/embeddings/position_embeddings",
                "bert.embeddings.position_embeddings",
                EMBEDDING,
            ),
            (
                "bert/embeddings/token_type_embeddings",
                "bert.embeddings.token_type_embeddings",
                EMBEDDING,
            ),
            ("bert/embeddings/layer_norm", "bert.embeddings.LayerNorm", LAYER_NORM),
            (f"{_LAYER}/attention/query", f"{_THEIR_LAYER}.attention.self.query", DENSE),
            (f"{_LAYER}/attention/key", f"{_THEIR_LAYER}.attention.self.key", DENSE),
            (f"{_LAYER}/attention/value", f"{_THEIR_LAYER}.attention.self.value", DENSE),
            (f"{_LAYER}/attention/output", f"{_THEIR_LAYER}.attention.output.dense", DENSE),
            (
                f"{_LAYER}/attention_layer_norm",
                f"{_THEIR_LAYER}.attention.output.LayerNorm",
                LAYER_NORM,
            ),
            (f"{_LAYER}/intermediate", f"{_THEIR_LAYER}.intermediate.dense", DENSE),
            (f"{_LAYER}/output", f"{_THEIR_LAYER}.output.dense", DENSE),
            (f"{_LAYER}/output_layer_norm", f"{_THEIR_LAYER}.output.LayerNorm", LAYER_NORM),
        ),
        "pooler": (("bert/pooler", "bert.pooler.dense", DENSE),),
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
        HeadClass(
            "BertForMaskedLM",
            (PRETRAINING,),
            ("MLM head",),
            (("mlm_logits", ("logits",)),),
            "fill-mask",
        ),
        HeadClass(
            "BertForNextSentencePrediction",
            (PRETRAINING,),
            ("pooler", "NSP head"),
            (("nsp_logits", ("logits",)),),
            "feature-extraction",
        ),
        HeadClass("BertModel", (PRETRAINING,), (), (), "feature-extraction", optional=("pooler",)),
        HeadClass(
            "BertForSequenceClassification",
            ("text_classification", "text_regression", "multi_label_classification"),
            ("pooler", "classifier"),
            _LOGITS,
            "text-classification",
        ),
        HeadClass(
            "BertForTokenClassification",
            ("token_classification",),
            ("classifier",),
            _LOGITS,
            "token-classification",
        ),
        HeadClass(
            "BertForQuestionAnswering",
            ("question_answering",),
            ("span classifier",),
            (("logits", ("start_logits", "end_logits")),),
            "question-answering",
        ),
        HeadClass(
            "BertForMultipleChoice",
            ("multiple_choice",),
            ("pooler", "classifier"),
            _LOGITS,
            "multiple-choice",
        ),
    ),
    settings={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "tie_word_embeddings": True,
    },
)

TABLES = {"bert": BERT}  # by the name of the encoder in bert_jax/models/architectures.py
