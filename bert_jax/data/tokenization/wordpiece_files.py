"""Reads directories of WordPiece tokenizers, as transformers does, or refuses them."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.data.tokenization import layout as layouts
from bert_jax.data.tokenization.base import AddedToken
from bert_jax.data.tokenization.directory import (
    PLAIN_CLASSES,
    Directory,
    add_tokens,
    check_ids,
    difference,
    parsed,
    special_tokens,
)
from bert_jax.data.tokenization.layout import BERT, Roles
from bert_jax.data.tokenization.wordpiece import (
    CONTINUATION_PREFIX,
    MAX_WORD_LENGTH,
    WordPieceTokenizer,
    bare,
)

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
_MPNET = "MPNetTokenizer"
_MPNET_ROLES = Roles("<pad>", "[UNK]", "<s>", "</s>", "<mask>")
# What a tokenizer.json has to say to be BERT's WordPiece.
_PARTS = (
    ("model", "type", "WordPiece"),
    ("model", "continuing_subword_prefix", CONTINUATION_PREFIX),
    ("normalizer", "type", "BertNormalizer"),
    ("normalizer", "clean_text", True),
    ("pre_tokenizer", "type", "BertPreTokenizer"),
)
_SPECIAL = re.compile(r"\[.+\]|<.+>").fullmatch  # also [unused0] and <S>
# What Rust's trim_end takes away; Python's rstrip takes more.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def read(directory: Directory, vocabulary: epath.Path | None = None) -> WordPieceTokenizer:
    """Reads a vocabulary, tokenizer.json before vocab.txt, as transformers does.

    Args:
      vocabulary: a vocabulary file that is named instead of the directory's own.

    Raises:
      UserError: no vocabulary, one of another kind, or files that contradict each other.
    """
    where, whole, config = directory.where, directory.whole, directory.config
    name = directory.class_name
    is_rebuilt = name in (*_BERT_CLASSES, _MPNET) or not whole
    if not name and directory.model_type in _BERT_MODELS:
        is_rebuilt = True
    _check_kind(directory)

    # Vocabulary and flags.
    vocab_file = vocabulary or directory.path / "vocab.txt"
    if whole:
        ids = files.checked(whole["model"].get("vocab"), dict[str, int], where, "model.vocab")
        if vocab_file.exists():
            _compare_vocabularies(where, ids, _read_vocab(vocab_file))
    elif vocab_file.exists():
        ids = _read_vocab(vocab_file)
    else:
        raise UserError(
            f"{where} has no vocabulary: expected tokenizer.json, vocab.txt, vocab.json with "
            "merges.txt, or a .model of SentencePiece in it "
            "(make one with: python -m data_prep.vocab --input=… --output=DIR)"
        )
    check_ids(where, ids)
    present = ids.keys() | {fields["content"] for fields in directory.declared.values()}
    roles = directory.roles(present, _MPNET_ROLES if name == _MPNET else BERT)
    unknown = whole["model"].get("unk_token") if whole else roles.unknown
    if unknown != roles.unknown:
        raise UserError(
            f"{where}: in tokenizer.json the model's unk_token is {unknown!r}, and the "
            f"tokenizer's is {roles.unknown!r}: expected the same"
        )
    normalizer = whole.get("normalizer") or {}
    lowercase, strip_accents = config.get("do_lower_case"), config.get("strip_accents")
    if not is_rebuilt:
        lowercase, strip_accents = normalizer.get("lowercase"), normalizer.get("strip_accents")
    elif lowercase is None:
        lowercase = bool(whole) or _looks_uncased(vocab_file, ids)  # transformers' default

    # What libraries build of it.
    readings = {}
    if is_rebuilt:
        readings["tokenizer_config.json"] = bare(
            ids, bool(lowercase), strip_accents, unknown=roles.unknown
        )
    if whole:
        text = (directory.path / "tokenizer.json").read_text()
        readings["tokenizer.json"] = parsed(directory.path / "tokenizer.json", text)
    longest = MAX_WORD_LENGTH
    if whole:
        longest = whole["model"].get("max_input_chars_per_word", MAX_WORD_LENGTH)
    named = dict(special_tokens(config))
    if is_rebuilt:
        named = {
            token: {"lstrip": True} if name == _MPNET and token == roles.mask else {}
            for token in roles
        } | named
    for reading in readings.values():
        add_tokens(where, reading, directory.declared, named)
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

    # The same from its parts.
    layout = layouts.as_roberta(roles) if name == _MPNET else layouts.as_bert(roles)
    if not is_rebuilt and whole.get("post_processor"):
        layout = layouts.read(readings["tokenizer.json"], where)
    vocab = [""] * (max([*ids.values(), *added]) + 1)
    for piece, i in ids.items():
        vocab[i] = piece
    kept = []
    for i, token in sorted(added.items()):
        vocab[i] = token.content
        ours = AddedToken.of(token, in_vocabulary=token.content in ids)
        if ours != AddedToken(token.content) or token.content not in roles:
            kept.append(ours)
    tokenizer = WordPieceTokenizer(
        tuple(vocab), bool(lowercase), strip_accents, tuple(kept), longest, roles, layout
    )
    if text := difference(tokenizer.backend, reading):
        raise UserError(
            f"{where} is not a tokenizer that this project computes: {text} (here, and as its "
            "files are read elsewhere)"
        )
    return tokenizer


def _check_kind(directory: Directory) -> None:
    """Raises UserError for a tokenizer of another kind than BERT's; names all that is other."""
    name, whole = directory.class_name, directory.whole
    problems = []
    if "Japanese" in name:
        problems.append(f"it is a {name}, which splits text into words by a dictionary")
    elif name and name not in (*_BERT_CLASSES, _MPNET, *PLAIN_CLASSES):
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
    config = directory.config
    if not config.get("tokenize_chinese_chars", normalizer.get("handle_chinese_chars", True)):
        problems.append("it does not part Chinese characters (tokenize_chinese_chars is false)")
    if problems:
        raise UserError(
            f"{directory.where} is not a tokenizer that this project computes: "
            f"{'; '.join(problems)}"
        )


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
