"""What special tokens are for, and where they stand around one and two segments of text."""

from collections.abc import Sequence
from typing import NamedTuple

import tokenizers

from bert_jax.cli import UserError


class Roles(NamedTuple):
    """Special tokens by what they are for; by default BERT's."""

    pad: str = "[PAD]"
    unknown: str = "[UNK]"
    start: str = "[CLS]"
    separator: str = "[SEP]"  # also what a sequence ends with
    mask: str = "[MASK]"


# transformers' names of the roles, and those that stand in where a file has not got them.
NAMES = {
    "pad": ("pad_token",),
    "unknown": ("unk_token",),
    "start": ("cls_token", "bos_token"),
    "separator": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
BERT = Roles()
ROBERTA = Roles("<pad>", "<unk>", "<s>", "</s>", "<mask>")


class Layout(NamedTuple):
    """Special tokens around one segment, PREFIX A SUFFIX, and two: PREFIX A MIDDLE B SUFFIX.

    Attributes:
      prefix, middle, suffix: tokens.
      single_types: token type ids of (*prefix, A, *suffix).
      pair_types: those of (*prefix, A, *middle, B, *suffix).
    """

    prefix: tuple[str, ...]
    middle: tuple[str, ...]
    suffix: tuple[str, ...]
    single_types: tuple[int, ...]
    pair_types: tuple[int, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.prefix, *self.middle, *self.suffix)))


def as_bert(roles: Roles) -> Layout:
    """[CLS] A [SEP] B [SEP], the second segment of type 1."""
    end = (roles.separator,)
    return Layout((roles.start,), end, end, (0, 0, 0), (0, 0, 0, 1, 1))


def as_roberta(roles: Roles) -> Layout:
    """<s> A </s> </s> B </s>, without token types."""
    end = (roles.separator,)
    return Layout((roles.start,), end * 2, end, (0,) * 3, (0,) * 6)


def as_xlnet(roles: Roles) -> Layout:
    """A <sep> B <sep> <cls>, the last of a type of its own."""
    end = (roles.separator, roles.start)
    return Layout((), (roles.separator,), end, (0, 0, 2), (0, 0, 1, 1, 2))


BERT_LAYOUT = as_bert(BERT)


def read(backend: tokenizers.Tokenizer, where: object) -> Layout:
    """The layout that a tokenizer's own post-processor makes, found by running it.

    Raises:
      UserError: there is no post-processor, or it makes a layout of another form.
    """
    text = backend.encode("a", add_special_tokens=False)
    if backend.post_processor is None or not len(text):
        raise UserError(
            f"{where} does not say which special tokens a sequence begins and ends with: expected "
            "a post_processor in tokenizer.json"
        )
    single = backend.post_process(text)
    pair = backend.post_process(text, backend.encode("a", add_special_tokens=False))
    prefix, suffix = _around(single.ids, text.ids)
    tail = pair.ids[len(prefix) + len(text) :]
    middle, end = _around(tail, text.ids)
    is_known = pair.ids[: len(prefix)] == prefix and end == suffix and prefix + suffix and middle
    if not is_known:
        raise UserError(
            f"{where} lays out one segment as {single.tokens} and two as {pair.tokens}: expected "
            "the same special tokens before the first and after the last"
        )

    def types(encoding: tokenizers.Encoding, segments: Sequence[int]) -> tuple[int, ...]:
        """Without the repetitions within a segment; `segments` are their first positions."""
        skipped = {i + n for i in segments for n in range(1, len(text))}
        return tuple(x for i, x in enumerate(encoding.type_ids) if i not in skipped)

    first = len(prefix)
    second = first + len(text) + len(middle)
    token_of = {i: token for token, i in backend.get_vocab().items()}
    if other := {*prefix, *middle, *suffix} - token_of.keys():
        raise UserError(
            f"{where}: the post_processor in tokenizer.json adds the id {min(other)}, which no "
            "token has"
        )

    def names(ids: list[int]) -> tuple[str, ...]:
        return tuple(token_of[i] for i in ids)

    return Layout(
        prefix=names(prefix),
        middle=names(middle),
        suffix=names(suffix),
        single_types=types(single, [first]),
        pair_types=types(pair, [first, second]),
    )


def _around(ids: list[int], inner: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and after the first occurrence of `inner`; nothing if there is none."""
    for start in range(len(ids) - len(inner) + 1):
        if ids[start : start + len(inner)] == inner:
            return ids[:start], ids[start + len(inner) :]
    return [], []


def post_processor(layout: Layout, ids: dict[str, int]) -> tokenizers.processors.PostProcessor:
    """The post-processor that makes this layout."""
    if layout == BERT_LAYOUT:
        return tokenizers.processors.BertProcessing(
            (BERT.separator, ids[BERT.separator]), (BERT.start, ids[BERT.start])
        )

    def template(parts: Sequence[str], types: Sequence[int]) -> str:
        return " ".join(f"{part}:{kind}" for part, kind in zip(parts, types, strict=True))

    return tokenizers.processors.TemplateProcessing(
        single=template((*layout.prefix, "$A", *layout.suffix), layout.single_types),
        pair=template(
            (*layout.prefix, "$A", *layout.middle, "$B", *layout.suffix), layout.pair_types
        ),
        special_tokens=[(token, ids[token]) for token in layout.tokens],
    )
