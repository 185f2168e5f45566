"""What the files of a tokenizer's directory say, and what other libraries make of them.

Several files may speak of one tokenizer, and they need not agree. transformers 5 rebuilds some
classes from the vocabulary and the flags of tokenizer_config.json; its PreTrainedTokenizerFast, and
tools that do without transformers, take tokenizer.json as it stands. Both are built here with
`tokenizers`, to be compared with each other and with ours: no list of fields can tell as surely
whether the ids are the same.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import tokenizers
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief
from bert_jax.data.tokenization import sentencepiece
from bert_jax.data.tokenization.layout import BERT, NAMES, Roles

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", *sentencepiece.FILES)
FILES = (
    *VOCABULARIES,
    *("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "merges.txt"),
)
# Classes of transformers that are what tokenizer.json says, without "Fast".
PLAIN_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
_MAX_ID = 2**22  # four times the largest vocabulary there is: an id is a row of a matrix

# Texts that tell apart what is done to text first.
_PROBES = (
    "The U.S. GDP grew 3.5% in 2023, to 27,360 billion",
    "Crème BRÛLÉE naïve Ångström İstanbul straße Ελλάδα Йод हिन्दी ガギグ ไทย",
    "北京 is東京 2,000年 ﬁne ½ x² e\u0301",
    " \t\u00a0\u3000tabs\u200band\r\nblanks\u2028 ",
    "[CLS] [SEP] [PAD] [UNK] x[MASK]y [mask] ##s",
    f"{'a' * 100} {'a' * 101} {'a' * 1000}",
)


class AddedTokenJson(TypedDict, total=False):
    id: int
    content: str
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    single_word: bool


class TokenizerJson(TypedDict, total=False):
    model: dict[str, Any]
    added_tokens: list[AddedTokenJson]
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    post_processor: dict[str, Any] | None


_Token = str | AddedTokenJson
_Tokens = list[_Token] | dict[str, _Token]


class TokenizerConfig(TypedDict, total=False):
    tokenizer_class: str | None
    do_lower_case: bool | None
    strip_accents: bool | None
    tokenize_chinese_chars: bool | None
    add_prefix_space: bool | None
    keep_accents: bool | None
    unk_id: int | None
    added_tokens_decoder: dict[str, AddedTokenJson]
    pad_token: _Token | None
    unk_token: _Token | None
    cls_token: _Token | None
    sep_token: _Token | None
    mask_token: _Token | None
    bos_token: _Token | None
    eos_token: _Token | None
    additional_special_tokens: _Tokens | None
    extra_special_tokens: _Tokens | None


class _ModelConfig(TypedDict, total=False):
    model_type: str | None
    tokenizer_class: str | None


class Directory(NamedTuple):
    """What the files of a directory say of its tokenizer.

    Attributes:
      path: the directory.
      where: what messages name: the directory, or a vocabulary file in it.
      whole: tokenizer.json; {} where there is none.
      config: tokenizer_config.json with what older files add to it.
      declared: the added tokens by their ids.
      class_name: the class of transformers, without "Fast"; "" where none is named.
      model_type: of config.json.
    """

    path: epath.Path
    where: epath.Path
    whole: TokenizerJson
    config: TokenizerConfig
    declared: dict[int, AddedTokenJson]
    class_name: str
    model_type: str

    @property
    def kind(self) -> str:
        """'wordpiece', 'bpe' or 'unigram', or the name of another model in tokenizer.json."""
        model = self.whole.get("model") or {}
        if self.whole:
            named = model.get("type")  # not written by tokenizers of 2020
            if not named:
                is_list = isinstance(model.get("vocab"), list)
                named = "BPE" if "merges" in model else "Unigram" if is_list else "WordPiece"
            return str(named).lower()
        return "wordpiece"

    def roles(self, present: Collection[str], defaults: Roles = BERT) -> Roles:
        """The special tokens by what they are for.

        Args:
          present: all tokens.
          defaults: what the tokenizer's class takes where the files name none.

        Raises:
          UserError: a token that is not there.
        """
        config: Mapping[str, Any] = self.config
        found = {}
        for role, names in NAMES.items():
            values = [config.get(name) for name in names]
            tokens = [x.get("content") if isinstance(x, dict) else x for x in values]
            standard = getattr(defaults, role)
            known = standard if standard in present else None
            found[role] = str(tokens[0] or known or next(filter(None, tokens), None) or standard)
        if missing := [token for token in found.values() if token not in present]:
            raise UserError(
                f"{self.where} has no {', '.join(missing)}: expected tokens for padding, unknown "
                "words, start, separator and mask, by the names in tokenizer_config.json"
            )
        return Roles(**found)


def describe(path: epath.Path, vocabulary: epath.Path | None = None) -> Directory:
    """Reads the JSON files of a directory.

    Args:
      vocabulary: a vocabulary file that is named instead of the directory's own.
    """
    whole: TokenizerJson = {}
    if vocabulary is None:
        whole = files.read_shaped(path / "tokenizer.json", TokenizerJson)
    config, declared = _read_config(path, whole)
    model: _ModelConfig = {}
    if (path / "config.json").exists():
        model = files.read_shaped(path / "config.json", _ModelConfig)
    name = config.get("tokenizer_class") or model.get("tokenizer_class") or ""
    model_type = model.get("model_type") or ""
    return Directory(
        path, vocabulary or path, whole, config, declared, name.removesuffix("Fast"), model_type
    )


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
    steps = (backend.normalizer, backend.pre_tokenizer)
    if isinstance(model, tokenizers.models.WordPiece):  # its state with gaps would be printed
        state = [model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word]
    else:
        state = [model.__getstate__()]
    return [
        *(step and step.__getstate__() for step in steps),
        *state,
        {i: token.__getstate__() for i, token in added.items()},
        backend.get_vocab(with_added_tokens=False),
    ]


def _read_config(
    directory: epath.Path, whole: TokenizerJson
) -> tuple[TokenizerConfig, dict[int, AddedTokenJson]]:
    """tokenizer_config.json with what older files add to it, and the added tokens by their ids."""
    path = directory / "tokenizer_config.json"
    config = files.read_shaped(path, TokenizerConfig)
    extra = config.pop("additional_special_tokens", None)
    if extra and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = extra
    declared: dict[int, AddedTokenJson] = {}
    if "added_tokens_decoder" in config:  # transformers then reads no other file
        for number, fields in config["added_tokens_decoder"].items():
            if not number.isdecimal():
                raise UserError(f"{path}: the added token {fields!r} has the id {number!r}")
            declared[int(number)] = fields
    else:
        legacy = files.read_shaped(directory / "special_tokens_map.json", TokenizerConfig)
        known = config.get("extra_special_tokens")
        config |= legacy
        if isinstance(known, list) and isinstance(legacy.get("extra_special_tokens"), list):
            config["extra_special_tokens"] = [*known, *(legacy["extra_special_tokens"] or [])]
        # An older file's additional_special_tokens are no special tokens to transformers 5.
        others = {k: v for k, v in config.items() if k != "additional_special_tokens"}
        special = {content for content, _ in special_tokens(others)}
        indices = files.read_shaped(directory / "added_tokens.json", dict[str, int])
        for content, i in indices.items():
            is_special = content in special
            declared[i] = {"content": content, "special": is_special, "normalized": not is_special}
        declared |= {fields.get("id", -1): fields for fields in whole.get("added_tokens", [])}
    if nameless := [i for i, fields in declared.items() if not fields.get("content")]:
        raise UserError(f"{directory}: the added token of id {nameless[0]} has no content")
    return config, declared


def special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
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


def add_tokens(
    where: epath.PathLike,
    backend: tokenizers.Tokenizer,
    declared: Mapping[int, AddedTokenJson],
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


@contextlib.contextmanager
def readable(where: epath.PathLike, kind: str = "tokenizer") -> Iterator[None]:
    """Turns what goes wrong with contents of the wrong form into a UserError."""
    try:
        yield
    except BaseException as error:  # Rust's panics are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, UserError)):
            raise
        raise UserError(f"{where} cannot be read as a {kind} ({brief(error)})") from None


def parsed(path: epath.Path, text: str) -> tokenizers.Tokenizer:
    with readable(path):
        backend = tokenizers.Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    return backend


def check_ids(where: epath.PathLike, ids: Mapping[str, int]) -> None:
    """Raises UserError for ids that are no row numbers, or one id of two tokens."""
    tokens: dict[int, str] = {}
    for token, i in ids.items():
        if not 0 <= i < _MAX_ID:
            raise UserError(f"{where}: the token {token!r} has id {i}, expected 0 to {_MAX_ID:,}")
        if i in tokens:
            raise UserError(f"{where}: the tokens {tokens[i]!r} and {token!r} both have id {i}")
        tokens[i] = token
