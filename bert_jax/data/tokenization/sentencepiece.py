"""Reads the .model files of SentencePiece: pieces with their scores, and its normaliser's table.

A vocabulary of fairseq's (XLM-R, CamemBERT) has other ids than its .model: special tokens come
first, in fairseq's order, and the mask last.
"""

import functools
from typing import Any, NamedTuple

from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from bert_jax import files
from bert_jax.cli import UserError, brief

FILES = ("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model")
_UNIGRAM = 1  # TrainerSpec.ModelType
_CONTROL, _USER_DEFINED = 3, 4  # ModelProto.SentencePiece.Type
# fairseq's own pieces: (before, how many of the .model's they replace, after).
_FAIRSEQ: dict[str, tuple[list[tuple[str, float]], int, list[tuple[str, float]]]] = {
    "XLMRobertaTokenizer": (
        [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)],
        3,
        [("<mask>", 0.0)],
    ),
    "CamembertTokenizer": (
        [
            *(("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0)),
            ("<unk>NOTUSED", -100.0),
        ],
        1,
        [("<mask>", 0.0)],
    ),
}


class Model(NamedTuple):
    """A .model file in the terms of a tokenizer.json.

    Attributes:
      model: the field "model".
      table: of the normaliser (Precompiled); b"" if it has none.
      added: id -> control pieces and user-defined ones, which are found in the text first.
    """

    model: dict[str, Any]
    table: bytes
    added: dict[int, Any]


def file_in(directory: epath.Path) -> epath.Path | None:
    """The .model file of a directory, by the names that Hugging Face knows."""
    return next((directory / name for name in FILES if (directory / name).exists()), None)


def read(path: epath.Path, class_name: str) -> Model:
    """Reads a Unigram .model as the class of transformers does.

    Raises:
      UserError: no SentencePiece model, or one of another kind.
    """
    files.check_regular(path, files.MAX_JSON)
    try:
        proto = parse(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is not a model of SentencePiece ({brief(error)})") from None
    if not proto.pieces or proto.trainer_spec.model_type != _UNIGRAM:
        raise UserError(
            f"{path} is not a Unigram model of SentencePiece: expected one, or tokenizer.json "
            "beside it"
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    before, replaced, after = _FAIRSEQ.get(class_name, ([], 0, []))
    vocab = [*before, *pieces[replaced:], *after]
    ids = {piece: i for i, (piece, _) in enumerate(vocab)}
    added = {
        ids[piece.piece]: {
            "content": piece.piece,
            "special": piece.type == _CONTROL,
            "normalized": False,
        }
        for piece in proto.pieces
        if piece.type in (_CONTROL, _USER_DEFINED) and piece.piece in ids
    }
    model = {"type": "Unigram", "vocab": vocab}
    return Model(model, proto.normalizer_spec.precompiled_charsmap, added)


def parse(content: bytes) -> Any:
    """A ModelProto, of which the fields below are known."""
    proto = _message()()
    proto.ParseFromString(content)
    return proto


@functools.cache
def _message() -> Any:
    """The class of ModelProto, with the fields that are read (sentencepiece_model.proto)."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="bert_jax_sentencepiece.proto", syntax="proto2")
    file.package = "bert_jax.sentencepiece"

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        described = file.message_type.add(name=name)
        for field, number, kind, default in fields:
            added = described.field.add(name=field, number=number, type=kind)
            added.label = kinds.LABEL_OPTIONAL
            if kind == kinds.TYPE_MESSAGE:
                added.type_name = f".{file.package}.{default}"
                added.label = kinds.LABEL_REPEATED if field == "pieces" else kinds.LABEL_OPTIONAL
            elif default:
                added.default_value = default

    message(
        "Piece",
        ("piece", 1, kinds.TYPE_STRING, ""),
        ("score", 2, kinds.TYPE_FLOAT, ""),
        ("type", 3, kinds.TYPE_INT32, "1"),
    )
    message("Trainer", ("model_type", 3, kinds.TYPE_INT32, "1"))
    message("Normalizer", ("precompiled_charsmap", 2, kinds.TYPE_BYTES, ""))
    message(
        "Model",
        ("pieces", 1, kinds.TYPE_MESSAGE, "Piece"),
        ("trainer_spec", 2, kinds.TYPE_MESSAGE, "Trainer"),
        ("normalizer_spec", 3, kinds.TYPE_MESSAGE, "Normalizer"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))
