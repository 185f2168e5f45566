"""Label schemes of entities: BIO (IOB1, IOB2), IO, BIOES and BILOU; with types or plain (B, I, O).

Entities are found as seqeval finds them; labels are converted from one scheme to another.
"""

import re
from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]  # type, first word, word after the last

UNTYPED = "entity"  # the type of plain B, I, O
# The prefixes of an entity's first word, words inside and last word; and of one of a single word.
_PREFIXES = {
    "IO": ("I", "I", "I", "I"),
    "BIO": ("B", "I", "I", "B"),
    "BIOES": ("B", "I", "E", "S"),
    "BILOU": ("B", "I", "L", "U"),
}
# What L and U are called elsewhere.
_BIOES = str.maketrans("LU", "ES")


def parse(label: str) -> tuple[str, str] | None:
    """'B-PER' -> ('B', 'PER'); 'B' -> ('B', 'entity'); 'O' -> ('O', ''); 'NN' -> None."""
    if label == "O":
        return "O", ""
    if match := re.fullmatch(r"([BIESLU])(?:-(.+))?", label, re.DOTALL):
        return match[1], match[2] or UNTYPED
    return None


def is_plain(label: str) -> bool:
    """Whether the label is a prefix without a type."""
    return len(label) == 1 and label != "O"


def are_entities(labels: Iterable[str]) -> bool:
    """Whether all labels follow a scheme; plain ones and ones with types together do not."""
    labels = {label for label in labels if label != "O"}
    if not all(map(parse, labels)) or len({*map(is_plain, labels)}) > 1:
        return False
    # Single letters may be something else: no scheme does without B and I.
    return not any(map(is_plain, labels)) or bool(labels & {"B", "I"})


def scheme_of(labels: Iterable[str]) -> str:
    """The scheme of labels that are entities': a set, or several sequences' together.

    scheme_of(["O", "S-PER", "B-LOC", "E-LOC"]) -> "BIOES"
    """
    prefixes = {parsed[0] for label in labels if (parsed := parse(label))}
    if prefixes & set("LU"):
        return "BILOU"
    if prefixes & set("ES"):
        return "BIOES"
    return "BIO" if "B" in prefixes else "IO"


def entities(labels: Sequence[str]) -> list[Entity]:
    """['B-PER', 'I-PER', 'O', 'I-LOC'] -> [('PER', 0, 2), ('LOC', 3, 4)].

    As conlleval and seqeval (by default) count: sequences that break their scheme have entities
    too; an I- after another type, or after O, begins one. L- and U- are read as E- and S-.
    """
    found = []
    start, kind, before = 0, "", "O"
    for i, label in enumerate([*labels, "O"]):
        parsed = parse(label)
        prefix, here = parsed if parsed else ("I", label)
        prefix = prefix.translate(_BIOES)
        if kind and (here != kind or prefix in "BS" or before in "ES"):
            found.append((kind, start, i))
            kind = ""
        if here and not kind:
            start, kind = i, here
        before = prefix
    return found


def strict_bilou_entities(labels: Sequence[str]) -> list[Entity]:
    """The entities written as U, or as B, I …, L of one type; as seqeval's scheme=BILOU."""
    found = []
    start, kind = 0, ""
    for i, label in enumerate(labels):
        prefix, here = parse(label) or ("O", "")
        if prefix == "U":
            found.append((here, i, i + 1))
        if prefix == "L" and here == kind:
            found.append((kind, start, i + 1))
        if prefix == "B":
            start, kind = i, here
        elif prefix != "I" or here != kind:
            kind = ""
    return found


def find_entities(labels: Iterable[str], sequences: Iterable[Sequence[str]]) -> list[list[Entity]]:
    """The entities of each sequence as seqeval scores them, `labels` being all that may come.

    By default seqeval does not know L and U: of BILOU it is its strict mode.
    """
    find = strict_bilou_entities if scheme_of(labels) == "BILOU" else entities
    return [find(sequence) for sequence in sequences]


def convert(labels: Sequence[str], scheme: str = "BIO") -> list[str]:
    """The same entities written in another scheme; labels of no scheme stay as they are.

    CoNLL-2003 is distributed as IOB1, where B- only parts an entity from another of its type:

        convert(["I-PER", "I-PER", "O", "I-LOC"]) -> ["B-PER", "I-PER", "O", "B-LOC"]
    """
    if not all(map(parse, labels)):
        return list(labels)
    plain = any(map(is_plain, labels))
    first, inside, last, single = _PREFIXES[scheme]
    result = ["O"] * len(labels)
    for kind, start, end in entities(labels):
        prefixes = [first, *[inside] * (end - start - 2), last] if end - start > 1 else [single]
        for i, prefix in enumerate(prefixes, start):
            result[i] = prefix if plain else f"{prefix}-{kind}"
    return result


def all_labels(labels: Iterable[str], scheme: str = "BIO") -> set[str]:
    """O, and every type of `labels` with all prefixes of a scheme."""
    labels = set(labels)
    prefixes = set(_PREFIXES[scheme])
    if any(map(is_plain, labels)):
        return {"O"} | prefixes
    kinds = {parsed[1] for label in labels - {"O"} if (parsed := parse(label))}
    return {"O"} | {f"{prefix}-{kind}" for prefix in prefixes for kind in kinds}
