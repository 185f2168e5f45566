"""What the files of a tokenizer's directory say, and what other libraries make of them.

Up to five files may speak of one tokenizer, and they need not agree. transformers 5 rebuilds a
BertTokenizer from the vocabulary and the flags of tokenizer_config.json; its
PreTrainedTokenizerFast, and tools that do without transformers, take tokenizer.json as it stands.
Both are built here with `tokenizers`, to be compared with each other and with ours: no list of
fields can tell as surely whether the ids are the same.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import tokenizers
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief

CONTINUATION_PREFIX = "##"
MAX_WORD_LENGTH = 100  # BERT's: a longer word is [UNK]
FILES = (
    *("vocab.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"),
    "special_tokens_map.json",
)
# The special tokens of a BERT tokenizer, by transformers' names.
NAMED = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# Classes of transformers that are BertTokenizer under another name, and those that are what
# tokenizer.json says; all without "Fast".
_BERT_CLASSES = (
    *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "ConvBertTokenizer"),
    *("MobileBertTokenizer", "LayoutLMTokenizer", "LxmertTokenizer", "SqueezeBertTokenizer"),
    *("RetriBertTokenizer", "RealmTokenizer", "DPRContextEncoderTokenizer"),
    *("DPRQuestionEncoderTokenizer", "DPRReaderTokenizer"),
)
_BERT_MODELS = (  # model_type of config.json -> BertTokenizer where no class is named
    *("bert", "distilbert", "electra", "ernie", "convbert", "layoutlm", "squeezebert"),
    *("megatron-bert", "nezha", "qdqbert", "mobilebert", "lxmert", "visual_bert"),
)
_PLAIN_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
# What a tokenizer.json has to say to be BERT's WordPiece.
_PARTS = (
    ("model", "type", "WordPiece"),
    ("model", "unk_token", "[UNK]"),
    ("model", "continuing_subword_prefix", CONTINUATION_PREFIX),
    ("normalizer", "type", "BertNormalizer"),
    ("normalizer", "clean_text", True),
    ("pre_tokenizer", "type", "BertPreTokenizer"),
)
_MAX_ID = 2**22  # four times the largest vocabulary there is: an id is a row of a matrix
_SPECIAL = re.compile(r"\[.+\]|<.+>").fullmatch  # also [unused0] and <S>
# What Rust's trim_end takes away; Python's rstrip takes more.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_PROBES = (
    "The U.S. GDP grew 3.5% in 2023, to 27,360 billion",
    "Crème BRÛLÉE naïve Ångström İstanbul straße Ελλάδα Йод हिन्दी ガギグ ไทย",
    "北京 is東京 2,000年 ﬁne ½ x² e\u0301",
    " \t\u00a0\u3000tabs\u200band\r\nblanks\u2028 ",
    "[CLS] [SEP] [PAD] [UNK] x[MASK]y [mask] ##s",
    f"{'a' * MAX_WORD_LENGTH} {'a' * (MAX_WORD_LENGTH + 1)} {'a' * 1000}",
)


class _AddedToken(TypedDict, total=False):
    id: int
    content: str
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    single_word: bool


class _TokenizerJson(TypedDict, total=False):
    model: dict[str, Any]
    added_tokens: list[_AddedToken]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None


_Token = str | _AddedToken
_Tokens = list[_Token] | dict[str, _Token]


class _TokenizerConfig(TypedDict, total=False):
    tokenizer_class: str | None
    do_lower_case: bool | None
    strip_accents: bool | None
    tokenize_chinese_chars: bool | None
    added_tokens_decoder: dict[str, _AddedToken]
    pad_token: _Token | None
    unk_token: _Token | None
    cls_token: _Token | None
    sep_token: _Token | None
    mask_token: _Token | None
    additional_special_tokens: _Tokens | None
    extra_special_tokens: _Tokens | None


class _ModelConfig(TypedDict, total=False):
    model_type: str | None
    tokenizer_class: str | None


class Source(NamedTuple):
    """What a directory says, without contradiction.

    Attributes:
      ids: token -> id of the WordPiece model.
      added: id -> token that is found in the text before it is cut into words.
      reading: the tokenizer that other libraries build of the directory.
    """

    ids: dict[str, int]
    lowercase: bool
    strip_accents: bool | None
    max_word_length: int
    added: dict[int, tokenizers.AddedToken]
    reading: tokenizers.Tokenizer


def wordpiece(
    ids: Mapping[str, int],
    lowercase: bool,
    strip_accents: bool | None,
    max_word_length: int = MAX_WORD_LENGTH,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer in Rust, without added tokens and templates."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            dict(ids), unk_token="[UNK]", max_input_chars_per_word=max_word_length
        )
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix=CONTINUATION_PREFIX)
    return backend


def read(directory: epath.Path, vocabulary: epath.Path | None = None) -> Source:
    """Reads the files of a directory, tokenizer.json before vocab.txt, as transformers does.

    Args:
      vocabulary: a vocabulary file that is named instead of the directory's own.

    Raises:
      UserError: no vocabulary, one of another kind, or files that contradict each other.
    """
    where = vocabulary or directory
    whole: _TokenizerJson = {}
    if vocabulary is None:
        whole = files.read_shaped(directory / "tokenizer.json", _TokenizerJson)
    config, declared = _read_config(directory, whole)
    model: _ModelConfig = {}
    if (directory / "config.json").exists():
        model = files.read_shaped(directory / "config.json", _ModelConfig)
    name = config.get("tokenizer_class") or model.get("tokenizer_class") or ""
    is_rebuilt = name.removesuffix("Fast") in _BERT_CLASSES or not whole
    if not name and model.get("model_type") in _BERT_MODELS:
        is_rebuilt = True
    _check_kind(where, name, whole, config)

    # Vocabulary and flags.
    vocab_file = vocabulary or directory / "vocab.txt"
    if whole:
        ids = files.checked(whole["model"].get("vocab"), dict[str, int], where, "model.vocab")
        if vocab_file.exists():
            _compare_vocabularies(where, ids, _read_vocab(vocab_file))
    elif vocab_file.exists():
        ids = _read_vocab(vocab_file)
    else:
        raise UserError(
            f"{where} has no vocabulary: expected vocab.txt or tokenizer.json in it "
            "(make one with: python -m data_prep.vocab --input=… --output=DIR)"
        )
    _check_ids(where, ids)
    present = ids.keys() | {fields["content"] for fields in declared.values()}
    if missing := [token for token in NAMED.values() if token not in present]:
        raise UserError(f"{where} is not a BERT vocabulary: it has no {', '.join(missing)}")
    normalizer = whole.get("normalizer") or {}
    lowercase, strip_accents = config.get("do_lower_case"), config.get("strip_accents")
    if not is_rebuilt:
        lowercase, strip_accents = normalizer.get("lowercase"), normalizer.get("strip_accents")
    elif lowercase is None:
        lowercase = bool(whole) or _looks_uncased(vocab_file, ids)  # transformers' default

    # What libraries build of it.
    readings = {}
    if is_rebuilt:
        readings["tokenizer_config.json"] = wordpiece(ids, bool(lowercase), strip_accents)
    if whole:
        text = (directory / "tokenizer.json").read_text()
        readings["tokenizer.json"] = _parsed(directory / "tokenizer.json", text)
    longest = MAX_WORD_LENGTH
    if whole:
        longest = whole["model"].get("max_input_chars_per_word", MAX_WORD_LENGTH)
    named = dict(_special_tokens(config))
    if is_rebuilt:
        named = {token: {} for token in NAMED.values()} | named
    for reading in readings.values():
        _add_tokens(where, reading, declared, named)
    reading, *others = readings.values()
    for other in others:
        text = difference(reading, other)
        if longest != MAX_WORD_LENGTH:
            text = f"words of up to {MAX_WORD_LENGTH} and {longest} characters"
        if text:
            raise UserError(
                f"{where}: tokenizer_config.json and tokenizer.json contradict each other: {text}. "
                "Make do_lower_case (true where it is absent), strip_accents and the added tokens "
                "of both the same"
            )
    added = reading.get_added_tokens_decoder()
    pieces = {i: token for token, i in ids.items()}
    for i, token in added.items():
        if pieces.get(i, token.content) != token.content:
            raise UserError(
                f"{where}: the added token {token.content!r} has the id {i} of {pieces[i]!r}: the "
                "vocabulary has a gap, which the library that added the token did not see"
            )
    return Source(ids, bool(lowercase), strip_accents, longest, added, reading)


def difference(one: tokenizers.Tokenizer, other: tokenizers.Tokenizer) -> str:
    """A text of which two tokenizers make other ids, with both; "" if none is found."""
    if _parts_of(one) == _parts_of(other):  # a hundred times faster than the texts
        return ""
    added = [token.content for token in one.get_added_tokens_decoder().values()]
    added += [token.content for token in other.get_added_tokens_decoder().values()]
    texts = [*_PROBES, *(f"{x} x{x}y {x.upper()}  {x.lower()} {x}." for x in dict.fromkeys(added))]
    pieces = sorted(one.get_vocab().keys() | other.get_vocab().keys())
    texts += [" ".join(pieces[i : i + 100]) for i in range(0, len(pieces), 100)]
    encoded = (x.encode_batch_fast(texts, add_special_tokens=False) for x in (one, other))
    for text, *encodings in zip(texts, *encoded, strict=True):
        first, second = (encoding.ids for encoding in encodings)
        if first != second:
            same = [a == b for a, b in zip(first, second, strict=False)]
            i = same.index(False) if False in same else len(same)
            return f"in {text[:60]!r} token {i} is {first[i : i + 3]} and {second[i : i + 3]}"
    return ""


def _parts_of(backend: tokenizers.Tokenizer) -> list[Any]:
    """All that the ids of a text depend on: equal parts, equal ids."""
    model, added = backend.model, backend.get_added_tokens_decoder()
    return [
        *(backend.normalizer.__getstate__(), backend.pre_tokenizer.__getstate__()),
        *(model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word),
        {i: token.__getstate__() for i, token in added.items()},
        backend.get_vocab(with_added_tokens=False),
    ]


def _read_config(
    directory: epath.Path, whole: _TokenizerJson
) -> tuple[_TokenizerConfig, dict[int, _AddedToken]]:
    """tokenizer_config.json with what older files add to it, and the added tokens by their ids."""
    path = directory / "tokenizer_config.json"
    config = files.read_shaped(path, _TokenizerConfig)
    extra = config.pop("additional_special_tokens", None)
    if extra and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = extra
    declared: dict[int, _AddedToken] = {}
    if "added_tokens_decoder" in config:  # transformers then reads no other file
        for number, fields in config["added_tokens_decoder"].items():
            if not number.isdecimal():
                raise UserError(f"{path}: the added token {fields!r} has the id {number!r}")
            declared[int(number)] = fields
    else:
        legacy = files.read_shaped(directory / "special_tokens_map.json", _TokenizerConfig)
        known = config.get("extra_special_tokens")
        config |= legacy
        if isinstance(known, list) and isinstance(legacy.get("extra_special_tokens"), list):
            config["extra_special_tokens"] = [*known, *(legacy["extra_special_tokens"] or [])]
        # An older file's additional_special_tokens are no special tokens to transformers 5.
        others = {k: v for k, v in config.items() if k != "additional_special_tokens"}
        special = {content for content, _ in _special_tokens(others)}
        indices = files.read_shaped(directory / "added_tokens.json", dict[str, int])
        for content, i in indices.items():
            is_special = content in special
            declared[i] = {"content": content, "special": is_special, "normalized": not is_special}
        declared |= {fields.get("id", -1): fields for fields in whole.get("added_tokens", [])}
    if nameless := [i for i, fields in declared.items() if not fields.get("content")]:
        raise UserError(f"{directory}: the added token of id {nameless[0]} has no content")
    return config, declared


def _special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(token, its flags) of all special tokens that a tokenizer_config.json names."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = [value for name, value in config.items() if name.endswith("_token")]
    for value in [*named, *(extra.values() if isinstance(extra, dict) else extra)]:
        if isinstance(value, str):
            yield value, {}
        elif isinstance(value, dict) and isinstance(value.get("content"), str):
            yield value["content"], value


def _token(fields: Mapping[str, Any], special: bool) -> tokenizers.AddedToken:
    flags = {name: fields[name] for name in ("lstrip", "rstrip", "single_word") if name in fields}
    normalized = fields.get("normalized", not special)
    return tokenizers.AddedToken(fields["content"], special=special, normalized=normalized, **flags)


def _add_tokens(
    where: epath.PathLike,
    backend: tokenizers.Tokenizer,
    declared: Mapping[int, _AddedToken],
    named: Mapping[str, Mapping[str, Any]],
) -> None:
    """Adds to a tokenizer what transformers adds, in its order, and checks the ids.

    Raises:
      UserError: a token comes to another id than its file says: the library gives it the next one.
    """
    backend.add_tokens(
        [
            _token(fields, fields.get("special", False) or fields["content"] in named)
            for _, fields in sorted(declared.items())
        ]
    )
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens(
        [
            _token({**fields, "content": content}, special=True)
            for content, fields in named.items()
            if content not in known
        ]
    )
    for i, fields in declared.items():
        if (got := backend.token_to_id(fields["content"])) != i:
            raise UserError(
                f"{where}: the added token {fields['content']!r} is said to have id {i}, and "
                f"transformers gives it {got}: another has that id, or there is a gap before it"
            )


def _parsed(path: epath.Path, text: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # Rust's panics are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(f"{path} cannot be read as a tokenizer ({brief(error)})") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _check_kind(
    where: epath.PathLike, name: str, whole: _TokenizerJson, config: _TokenizerConfig
) -> None:
    """Raises UserError for a tokenizer of another kind than BERT's; names all that is other."""
    problems = []
    if "Japanese" in name:
        problems.append(f"it is a {name}, which splits text into words by a dictionary")
    elif name and name.removesuffix("Fast") not in _BERT_CLASSES + _PLAIN_CLASSES:
        problems.append(f"it is a {name}, not a BertTokenizer")
    if whole:
        for part, field, expected in _PARTS:
            values: Any = whole.get(part) or {}
            found = values.get(field)
            if part == "model" and field == "type" and found is None:
                continue  # not written by tokenizers of 2020; the other lines tell its kind
            if found != expected:
                problems.append(
                    f"in its tokenizer.json the {part}'s {field} is {found!r}, not {expected!r}"
                )
    normalizer = whole.get("normalizer") or {}
    if not config.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)):
        problems.append("it does not part Chinese characters (tokenize_chinese_chars is false)")
    for field, expected in NAMED.items():
        value: Any = config.get(field) or expected
        content = value if isinstance(value, str) else value.get("content")
        if content != expected:
            problems.append(f"its {field} is {content!r}, not {expected!r}")
    if problems:
        raise UserError(
            f"{where} is not a tokenizer that this project computes: {'; '.join(problems)}"
        )


def _check_ids(where: epath.PathLike, ids: Mapping[str, int]) -> None:
    """Raises UserError for ids that are no row numbers, or one id of two tokens."""
    tokens: dict[int, str] = {}
    for token, i in ids.items():
        if not 0 <= i < _MAX_ID:
            raise UserError(f"{where}: the token {token!r} has id {i}, expected 0 to {_MAX_ID:,}")
        if i in tokens:
            raise UserError(f"{where}: the tokens {tokens[i]!r} and {token!r} both have id {i}")
        tokens[i] = token


def _read_vocab(path: epath.Path) -> dict[str, int]:
    """Token -> line number from 0. Blank lines are ids that no text comes to.

    Raises:
      UserError: not UTF-8, or a token is there twice.
    """
    files.check_regular(path, files.MAX_JSON)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a vocabulary: it is not UTF-8 text ({error})") from None
    if text.startswith("\ufeff"):
        raise UserError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    ids: dict[str, int] = {}
    for i, line in enumerate(text.removesuffix("\n").split("\n")):
        token = line.rstrip(_BLANKS)
        if token and token in ids:
            raise UserError(
                f"{path} is not a BERT vocabulary: {token!r} is listed twice, in the lines "
                f"{ids[token] + 1} and {i + 1}"
            )
        ids[token] = i
    return ids


def _compare_vocabularies(
    where: epath.PathLike, used: Mapping[str, int], other: Mapping[str, int]
) -> None:
    """Warns if vocab.txt is another vocabulary than tokenizer.json."""
    moved = [x for x, i in other.items() if x and used.get(x, i) != i]
    if moved:
        logging.warning(
            f"{where}: vocab.txt has other ids than tokenizer.json, which is used as transformers "
            f"does ({len(moved):,} tokens, such as {moved[0]!r}: {other[moved[0]]} and "
            f"{used[moved[0]]})"
        )


def _looks_uncased(path: epath.Path, ids: Mapping[str, int]) -> bool:
    """By the names of the file and its directory, else by capitals in whole words."""
    path = files.absolute(path)  # the name of the directory that "vocab.txt" is in
    for name in (path.name.lower(), path.parent.name.lower()):
        if "cased" in name:
            return "uncased" in name
    words = (x for x in ids if not x.startswith(CONTINUATION_PREFIX) and not _SPECIAL(x))
    return all(word == word.lower() for word in words)
