"""The corpus that every machine has: English documentation of the installed Python packages.

Docstrings of the standard library and of the installed packages, the topics of `pydoc`, and the
descriptions of the packages. Strings are found by their quotes and read with `ast`; nothing is
imported. One module is one document. Its docstrings are cleaned until mostly English sentences are
left, and a paragraph that was there before (a licence, an inherited docstring) is dropped, so that
held-out documents measure something.
"""

import ast
import hashlib
import inspect
import os
import re
import string
import sysconfig
import warnings
from collections.abc import Iterator, Sequence

from bert_jax.cli import UserError
from data_prep import parallel
from data_prep.sources.documents import Document, clean

DEFAULT_MAX_MB = 16.0  # all there is takes longer to parse than a laptop's first run should
MIN_CHARACTERS = 200
PYTHON = "python"  # the "package" of the standard library and of pydoc's topics
_OWN = ("bert_jax", "data_prep", "configs")  # what this project says of itself changes daily
_MAX_FILE_BYTES = 1 << 20  # larger ones are tables
_FILES_AT_ONCE = 100
_SKIPPED = re.compile(
    r"(^|/)(tests?|testing|_tests?|idlelib|lib2to3|turtledemo|encodings|__pycache__|_?vendor(ed)?|"
    r"third_party|node_modules|_vendored_packages)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest|"
    r"[^/]*_pb2(_grpc)?)\.py$"
)

# A string that begins its line is a docstring, but for a rare argument. Parsing whole modules with
# ast finds the same text and takes a minute for the packages that a JAX and torch install has.
_QUOTES = re.compile(rb"^[ \t]*[rRuU]?(\"\"\"|''')", re.MULTILINE)
_UNDERLINE = re.compile(r"[-=~^*#\"'`+.]{3,}|[-=+|: ]{3,}").fullmatch
_DIRECTIVE = re.compile(r"\.\. |>>> |\.\.\. |\$ |% |@|[A-Z]\w+( \w+)?:$").match
# ":param name: description", "name : type" (numpy) and "name (type): description" (Google).
_PARAMETER = re.compile(
    r":(?:param|parameter|arg|type|rtype|return|returns|raises?|ivar|var)\b[^:]*:"
    r"|[-*]? ?[`*]{0,3}[\w.,*]{1,40}[`*]{0,3} ?(?:\((?:[^()]|\([^()]*\))*\))? ?:(?: +|$)"
).match
_MARKUP = (  # (a character without which the pattern cannot match, pattern, replacement)
    ("`", re.compile(r":[\w:+-]+:`~?!?([^`<]*?)\s*(?:<[^`]*>)?`"), r"\1"),  # :class:`~a.b`
    ("`", re.compile(r"`{1,2}([^`]+?)\s*(?:<[^`]*>)?`{1,2}_{0,2}"), r"\1"),  # ``code``, `a <b>`_
    ("](", re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # [text](url)
    ("**", re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    ("*", re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    ("<", re.compile(r"<[^<>]{1,80}>"), ""),
    ("|", re.compile(r"\|(\w+)\|"), r"\1"),
    ("]_", re.compile(r" ?\[\d+\]_"), ""),
)
_LETTERS_OUT = str.maketrans("", "", string.ascii_letters)
_COMMON_WORDS = frozenset(
    {"the", "a", "an", "of", "to", "is", "are", "in", "and", "for", "be", "that", "this", "it"}
    | {"with", "if", "or", "by", "as", "on", "from", "which", "when", "not", "can", "will"}
    | {"used", "using", "returns", "return", "has", "have", "at"}
)


def parse_max_mb(source: str) -> float:
    """'pydocs' -> 16.0, 'pydocs:4' -> 4.0."""
    if source == "pydocs":
        return DEFAULT_MAX_MB
    try:
        max_mb = float(source.removeprefix("pydocs:"))
    except ValueError:
        max_mb = 0.0
    if not max_mb > 0:  # NaN included
        raise UserError(f"input {source}: expected pydocs or pydocs:MAX_MB, above 0")
    return max_mb


def texts(source: str, field: str) -> Iterator[str]:
    """The documents of 'pydocs[:MAX_MB]'; `field` is for other sources."""
    del field
    return (document.text for document in documents(parse_max_mb(source)))


def documents(max_mb: float = DEFAULT_MAX_MB, workers: int | None = None) -> Iterator[Document]:
    """Yields documents in an order that depends on what is installed alone.

    The `id` names the module, as in 'numpy/linalg/_linalg.py', 'numpy/METADATA' or
    'python/asyncio/events.py'; what stands before the first slash is the package (`package_of`).

    Args:
      max_mb: stop after so many megabytes of text; the order is pseudo-random, so that they are
        from all packages.
      workers: local processes.
    """
    sources = sorted(_find(), key=lambda pair: hashlib.blake2b(pair[0].encode()).digest())
    runs = [sources[i : i + _FILES_AT_ONCE] for i in range(0, len(sources), _FILES_AT_ONCE)]
    seen: set[bytes] = set()
    size = 0
    for found in _in_order(runs, parallel.checked_workers(workers)):
        for document_id, paragraphs in found:
            fresh = []
            for paragraph in paragraphs:
                key = hashlib.blake2b(paragraph.lower().encode(), digest_size=8).digest()
                if key not in seen:
                    seen.add(key)
                    fresh.append(paragraph)
            text = clean("\n".join(fresh))
            if len(text) >= MIN_CHARACTERS:
                size += len(text)
                yield Document(text, document_id)
                if size >= max_mb * 1e6:
                    return


def package_of(document_id: str) -> str:
    """'numpy/linalg/_linalg.py' -> 'numpy'."""
    return document_id.partition("/")[0]


def _in_order(runs: Sequence[list], workers: int) -> Iterator[list[tuple[str, list[str]]]]:
    waiting: dict[int, list] = {}
    turn = 0
    for (index, _), found in parallel.run(_extract, None, enumerate(runs), workers):
        waiting[index] = found
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1


def _find() -> Iterator[tuple[str, str]]:
    """Yields (document id, path) of every file that may hold documentation."""
    paths = sysconfig.get_paths()
    yield from _walk(paths["stdlib"], PYTHON + "/")
    for root in sorted({paths["purelib"], paths["platlib"]}):
        yield from _walk(root, "")


def _walk(root: str, prefix: str) -> Iterator[tuple[str, str]]:
    for directory, subdirectories, names in os.walk(root):
        relative = os.path.relpath(directory, root).replace(os.sep, "/")
        relative = "" if relative == "." else relative + "/"
        subdirectories[:] = [
            name
            for name in subdirectories
            if not _SKIPPED.search(relative + name)
            and name not in ("site-packages", "dist-packages")
            and not (not relative and name in _OWN)
        ]
        for name in names:
            path = os.path.join(directory, name)
            if name == "METADATA" and relative.endswith(".dist-info/"):
                package = relative.partition("-")[0].lower()
                if package not in _OWN:
                    yield f"{package}/METADATA", path
            elif name.endswith(".py") and not _SKIPPED.search(relative + name):
                package = prefix or ("" if relative else name.removesuffix(".py") + "/")
                yield f"{package}{relative}{name}", path


def _extract(_: None, run: tuple[int, list[tuple[str, str]]]) -> list[tuple[str, list[str]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in other people's code
        return _read_files(run[1])


def _read_files(sources: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(document id, path) -> (document id, paragraphs)."""
    found = []
    for document_id, path in sources:
        try:
            if os.path.getsize(path) > _MAX_FILE_BYTES:
                continue
            with open(path, "rb") as file:
                data = file.read()
        except OSError:  # a broken link, or a file that is not for this user
            continue
        if path.endswith("METADATA"):
            _, _, description = data.decode(errors="ignore").partition("\n\n")
            found.append((document_id, english_paragraphs(description)))
        elif path.endswith(os.path.join("pydoc_data", "topics.py")):
            topics = _string_values(data)
            found += [
                (f"{PYTHON}/topics/{name}", english_paragraphs(text)) for name, text in topics
            ]
        else:
            paragraphs = [p for text in _docstrings(data) for p in english_paragraphs(text)]
            found.append((document_id, paragraphs))
    return found


def _docstrings(data: bytes) -> Iterator[str]:
    """The triple-quoted strings that stand as statements, in the order of the file."""
    end = 0
    while match := _QUOTES.search(data, end):
        end = data.find(match.group(1), match.end()) + 3
        if end < 3:
            return
        literal = data[match.start() : end].strip()
        try:
            yield inspect.cleandoc(ast.literal_eval(literal.decode()))
        except (SyntaxError, ValueError):  # not UTF-8, or quotes met by chance
            continue


def _string_values(data: bytes) -> list[tuple[str, str]]:
    """Keys and values of the dictionaries of strings in a module."""
    pairs = []
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    pairs.append((str(key.value), str(value.value)))
    return pairs


def english_paragraphs(docstring: str) -> list[str]:
    """Keeps what reads as English, one paragraph a string.

    'Adds ``x``.\\n\\n>>> add(1)\\n2\\n\\nArgs:\\n  x (int): The number that\\n    is added.'
    -> ['Adds x.', 'The number that is added.']
    """
    long_enough = (text for text in _paragraphs(docstring) if text.count(" ") >= 4)
    return [text for text in map(_plain, long_enough) if _is_english(text)]


def _paragraphs(text: str) -> Iterator[str]:
    """Joins wrapped lines; code, doctests, tables and headings are skipped."""
    lines: list[str] = []
    indent = 0
    code_indent: int | None = None  # skip lines indented deeper than this
    in_fence = in_doctest = False

    for line in [*text.expandtabs().split("\n"), ""]:
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if stripped.startswith(("```", "~~~")):
            in_fence = not in_fence
            stripped = ""
        elif in_fence:
            continue
        if code_indent is not None and stripped:
            if depth > code_indent:
                continue
            code_indent = None
        is_underline = not stripped[:1].isalnum() and _UNDERLINE(stripped)
        if not stripped or is_underline:
            # An underline makes the line above it a heading.
            if lines and not (is_underline and len(lines) == 1):
                yield " ".join(lines)
            lines = []
            if in_doctest:
                code_indent, in_doctest = None, False
            continue
        if _DIRECTIVE(stripped):
            if lines:
                yield " ".join(lines)
            # What belongs to a directive is indented; a doctest's output is not, and ends with a
            # blank line; a heading such as "Args:" has nothing to skip.
            in_doctest = stripped.startswith((">>> ", "... "))
            code_indent = depth - in_doctest if stripped[0] in ".>" else None
            lines = []
            continue
        parameter = _PARAMETER(stripped) if ":" in stripped else None
        is_item = stripped.startswith(("- ", "* "))
        if lines and (parameter or is_item or depth < indent):
            yield " ".join(lines)
            lines = []
        if parameter:
            # In numpy's style a type follows the colon, and the description the line after.
            is_numpy = parameter.group().rstrip().endswith(" :")
            stripped = "" if is_numpy else stripped[parameter.end() :]
        elif is_item:
            stripped = stripped[2:]
        if not lines:
            indent = depth
        if stripped.endswith("::"):
            stripped, code_indent = stripped[:-1], depth
        if stripped:
            lines.append(stripped)


def _plain(paragraph: str) -> str:
    for trigger, pattern, replacement in _MARKUP:
        if trigger in paragraph:
            paragraph = pattern.sub(replacement, paragraph)
    return " ".join(paragraph.split()).strip(" -*#")


def _is_english(text: str) -> bool:
    words = text.split()
    if len(words) < 5 or not text[0].isalpha() or text[-1] not in ".!?:":
        return False
    if len(text) - len(text.translate(_LETTERS_OUT)) + len(words) < 0.88 * len(text):
        return False
    return sum(map(_COMMON_WORDS.__contains__, text.lower().split())) >= 0.12 * len(words)
