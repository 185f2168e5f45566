"""Reads directories of BPE and Unigram tokenizers, as transformers does, or refuses them."""

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from tokenizers import models, normalizers, pre_tokenizers

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data.tokenization import layout as layouts
from bert_jax.data.tokenization import sentencepiece
from bert_jax.data.tokenization.directory import (
    PLAIN_CLASSES,
    Directory,
    TokenizerConfig,
    add_tokens,
    difference,
    parsed,
    readable,
    special_tokens,
)
from bert_jax.data.tokenization.layout import ROBERTA, Layout, Roles
from bert_jax.data.tokenization.subword import METASPACE, SubwordTokenizer

_Model = dict[str, Any]  # the field "model" of a tokenizer.json


class _Class(NamedTuple):
    """A class of transformers 5 that builds its tokenizer from vocabulary and flags.

    Attributes:
      build: (model, the normalisation table of SentencePiece, tokenizer_config.json) -> what it
        builds.
      roles: its special tokens where the files name no others.
      layout: around one and two segments.
      further: other special tokens that it adds.
      mask_takes_blank: whether its mask token takes the blank before it along.
    """

    build: Callable[[_Model, bytes, TokenizerConfig], tokenizers.Tokenizer]
    roles: Roles
    layout: Callable[[Roles], Layout]
    further: tuple[str, ...] = ()
    mask_takes_blank: bool = False


def _roberta(model: _Model, table: bytes, config: TokenizerConfig) -> tokenizers.Tokenizer:
    pairs = [x.split(" ") if isinstance(x, str) else x for x in model["merges"]]
    merges = [(left, right) for left, right in pairs]
    backend = tokenizers.Tokenizer(models.BPE(vocab=model["vocab"], merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(config.get("add_prefix_space"))
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _unigram(model: _Model, unknown_id: int, config: TokenizerConfig) -> tokenizers.Tokenizer:
    vocab = [(piece, float(score)) for piece, score in model["vocab"]]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unknown_id, byte_fallback=False))
    scheme = "never" if config.get("add_prefix_space") is False else "always"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=METASPACE, prepend_scheme=scheme),
        ]
    )
    backend.decoder = tokenizers.decoders.Metaspace(replacement=METASPACE, prepend_scheme=scheme)
    return backend


def _xlm_roberta(model: _Model, table: bytes, config: TokenizerConfig) -> tokenizers.Tokenizer:
    backend = _unigram(model, 3, config)
    if table:
        backend.normalizer = normalizers.Precompiled(table)
    return backend


def _camembert(model: _Model, table: bytes, config: TokenizerConfig) -> tokenizers.Tokenizer:
    pieces = [piece for piece, _ in model["vocab"]]
    backend = _unigram(model, pieces.index("<unk>") if "<unk>" in pieces else 0, config)
    if table:
        backend.normalizer = normalizers.Precompiled(table)
    return backend


def _cleaned(
    backend: tokenizers.Tokenizer, table: bytes, lowercase: bool, strip_accents: bool
) -> tokenizers.Tokenizer:
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
    ]
    if strip_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if lowercase:
        steps.append(normalizers.Lowercase())
    if table:
        steps.append(normalizers.Precompiled(table))
    backend.normalizer = normalizers.Sequence(steps)
    return backend


def _albert(model: _Model, table: bytes, config: TokenizerConfig) -> tokenizers.Tokenizer:
    lowercase = config.get("do_lower_case") is not False
    return _cleaned(_unigram(model, 1, config), table, lowercase, not config.get("keep_accents"))


def _xlnet(model: _Model, table: bytes, config: TokenizerConfig) -> tokenizers.Tokenizer:
    lowercase = bool(config.get("do_lower_case"))
    return _cleaned(_unigram(model, config.get("unk_id") or 0, {}), table, lowercase, True)


_NOT_USED = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")
_CLASSES = {
    "RobertaTokenizer": _Class(_roberta, ROBERTA, layouts.as_roberta),
    "XLMRobertaTokenizer": _Class(_xlm_roberta, ROBERTA, layouts.as_roberta),
    "CamembertTokenizer": _Class(_camembert, ROBERTA, layouts.as_roberta, _NOT_USED, True),
    "AlbertTokenizer": _Class(
        _albert, Roles("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), layouts.as_bert
    ),
    "XLNetTokenizer": _Class(
        _xlnet,
        Roles("<pad>", "<unk>", "<cls>", "<sep>", "<mask>"),
        layouts.as_xlnet,
        ("<s>", "</s>", "<eop>", "<eod>"),
        True,
    ),
}
# model_type of config.json -> the class where none is named.
_CLASS_OF_MODEL = {
    **dict.fromkeys(("roberta", "longformer", "ibert", "data2vec-text"), "RobertaTokenizer"),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "xmod"), "XLMRobertaTokenizer"),
    "camembert": "CamembertTokenizer",
    "albert": "AlbertTokenizer",
    "xlnet": "XLNetTokenizer",
}


def has_vocabulary(path: epath.Path) -> bool:
    """Whether a directory without tokenizer.json and vocab.txt holds one of these tokenizers."""
    return (path / "merges.txt").exists() or sentencepiece.file_in(path) is not None


def read(directory: Directory) -> SubwordTokenizer:
    """Reads tokenizer.json, or else the files of the model's own library.

    Raises:
      UserError: files that contradict each other, a class of transformers that is not known, or a
        tokenizer that does what is not reproduced.
    """
    where, config, declared = directory.where, directory.config, directory.declared
    name = directory.class_name or _CLASS_OF_MODEL.get(directory.model_type, "")
    known = _CLASSES.get(name)
    if known is None and name not in ("", *PLAIN_CLASSES):
        raise UserError(
            f"{where} is a {name}: expected one of {', '.join(_CLASSES)}, or the class "
            'PreTrainedTokenizerFast; where tokenizer.json alone is right, set "tokenizer_class" '
            "in tokenizer_config.json to that"
        )
    file = directory.path / "tokenizer.json"
    readings: dict[str, tokenizers.Tokenizer] = {}
    model: _Model = {}
    if known:
        with readable(where, name):
            model, table, added = _source(directory, name)
            declared = {**added, **declared}
            _check_model(where, model)
            readings["tokenizer_config.json"] = known.build(model, table, config)
    if directory.whole:
        _check_model(where, directory.whole.get("model") or {})
        readings["tokenizer.json"] = parsed(file, file.read_text())
    if not readings:
        raise UserError(
            f"{where} does not say whose tokenizer it is: expected tokenizer.json, or "
            f'"tokenizer_class" in tokenizer_config.json (one of {", ".join(_CLASSES)})'
        )
    named = dict(special_tokens(config))
    if known:
        values: dict[str, Any] = {**config}
        standard = known.roles._asdict().items()
        own = [token for role, token in standard if not values.get(layouts.NAMES[role][0])]
        named = {token: {} for token in (*own, *known.further)} | named
        if known.mask_takes_blank and not named.get(known.roles.mask):
            named[known.roles.mask] = {"lstrip": True}
    for reading in readings.values():
        add_tokens(where, reading, declared, named)
    reading, *others = readings.values()
    for other in others:
        if text := difference(reading, other):
            raise UserError(
                f"{where}: tokenizer_config.json, read as a {name}, and tokenizer.json contradict "
                f'each other: {text}. Where tokenizer.json is right, set "tokenizer_class" in '
                'tokenizer_config.json to "PreTrainedTokenizerFast"'
            )
    roles = directory.roles(reading.get_vocab(), known.roles if known else ROBERTA)
    if directory.whole.get("post_processor"):
        layout = layouts.read(readings["tokenizer.json"], where)
        if known and layout != known.layout(roles):
            raise UserError(
                f"{where}: tokenizer.json lays out pairs as {layout}, a {name} as "
                f"{known.layout(roles)}: expected the same"
            )
    elif known:
        layout = known.layout(roles)
    else:
        layout = layouts.read(reading, where)  # says what is missing
    reading.post_processor = layouts.post_processor(layout, reading.get_vocab())
    unigrams = (directory.whole.get("model") or model)["vocab"]
    return SubwordTokenizer.of(
        reading, roles, layout, unigrams if isinstance(unigrams, list) else ()
    )


def _source(directory: Directory, name: str) -> sentencepiece.Model:
    """The pieces that a class of transformers builds its tokenizer from."""
    if directory.whole:
        steps = [directory.whole.get("normalizer") or {}]
        steps += steps[0].get("normalizers", [])
        tables = [x["precompiled_charsmap"] for x in steps if x.get("type") == "Precompiled"]
        table = base64.b64decode(tables[0] or "") if tables else b""
        return sentencepiece.Model(directory.whole["model"], table, {})
    if file := sentencepiece.file_in(directory.path):
        return sentencepiece.read(file, name)
    vocab = files.read_shaped(directory.path / "vocab.json", dict[str, int])
    lines = (directory.path / "merges.txt").read_text().split("\n")
    merges = [x.strip() for x in lines if x.strip() and not x.startswith("#version")]
    return sentencepiece.Model({"type": "BPE", "vocab": vocab, "merges": merges}, b"", {})


def _check_model(where: epath.PathLike, model: _Model) -> None:
    """Raises UserError for what makes ids that are no function of the text."""
    if model.get("dropout"):
        raise UserError(
            f"{where}: its BPE drops merges at random (dropout {model['dropout']}): expected none"
        )
