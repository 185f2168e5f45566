"""The embedded corpus: what is kept of a docstring, and that it is the same every time."""

import inspect

import pytest

from bert_jax.cli import UserError
from data_prep.sources import pydocs

NUMPY = """Return the sum of ``x`` and :class:`~a.B` along `axis`_ [1]_.

    Parameters
    ----------
    x : array_like, shape (n,)
        The numbers that are
        added to the sum.

    >>> add(1)
    2

    .. note::
        This is inside of a directive and it is not kept.

    For example, this is kept, and the code is not::

        the_code = of_the(example) and is_not_kept

    =====  =====
    a      b
    =====  =====
"""
GOOGLE = """Draws **samples** from the [table](https://x.y).

Args:
  size (tuple[int, ...], optional): The number of samples that
    are drawn.
  - a point that is in a list of the points.
```
this is the code of the example, and it is not kept.
```
"""


def test_numpy_style():
    assert pydocs.english_paragraphs(inspect.cleandoc(NUMPY)) == [
        "Return the sum of x and a.B along axis.",
        "The numbers that are added to the sum.",
        "For example, this is kept, and the code is not:",
    ]


def test_google_style():
    assert pydocs.english_paragraphs(GOOGLE) == [
        "Draws samples from the table.",
        "The number of samples that are drawn.",
        "a point that is in a list of the points.",
    ]


@pytest.mark.parametrize(
    "text", ["Too short.", "lorem ipsum dolor sit amet.", "a=1; b=2; c=[3]; d={4}; is the e.", ""]
)
def test_what_is_not_english(text):
    assert pydocs.english_paragraphs(text) == []


def test_docstrings_of_a_file():
    source = b'''r"""Module."""
x = """not a docstring"""
class A:
    \'\'\'Class.\'\'\'
    def f(self):
        """Method
        on two lines."""
'''
    assert list(pydocs._docstrings(source)) == ["Module.", "Class.", "Method\non two lines."]


def test_documents_are_deterministic_and_distinct():
    first, second = (list(pydocs.documents(0.3, workers=workers)) for workers in (1, 2))
    assert first == second
    assert sum(len(document.text) for document in first) >= 0.3e6
    paragraphs = [p.lower() for document in first for p in document.text.split("\n")]
    assert len(paragraphs) == len(set(paragraphs))
    assert all(len(document.text) >= 200 for document in first)
    assert len({pydocs.package_of(document.id) for document in first}) > 5
    assert not any(document.id.startswith(("bert_jax", "data_prep")) for document in first)


def test_topics_are_there():
    names = {document_id for document_id, _ in pydocs._find()}
    assert "python/pydoc_data/topics.py" in names
    assert "numpy/METADATA" in names


def test_max_mb():
    assert pydocs.parse_max_mb("pydocs") == 16.0
    assert pydocs.parse_max_mb("pydocs:0.5") == 0.5
    with pytest.raises(UserError, match="expected pydocs or pydocs:MAX_MB"):
        pydocs.parse_max_mb("pydocs:all")


def test_broken_links_are_passed_over(tmp_path):
    (tmp_path / "link.py").symlink_to(tmp_path / "gone.py")
    (tmp_path / "module.py").write_text('"""What this module does is said in this sentence."""\n')
    sources = [(name, str(tmp_path / name)) for name in ("link.py", "module.py")]
    paragraphs = ["What this module does is said in this sentence."]
    assert pydocs._read_files(sources) == [("module.py", paragraphs)]
