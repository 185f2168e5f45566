"""Flags of the commands: several values in one, and what is refused."""

import math

import pytest

from bert_jax.cli import UserError
from data_prep.options import BuildOptions, split_numbers, split_sources


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a.txt", ("a.txt",)),
        ("a.txt,hf:x", ("a.txt", "hf:x")),
        (r"a\,b.txt,c.txt", ("a,b.txt", "c.txt")),
    ],
)
def test_sources(value, found):
    assert split_sources(value) == found


def test_a_file_with_a_comma_in_its_name(tmp_path):
    path = tmp_path / "a,b.txt"
    path.write_text("One.")
    assert split_sources(str(path)) == (str(path),)


@pytest.mark.parametrize("value", ["", "a,,b", "a,", ",a", " "])
def test_an_empty_source(value):
    with pytest.raises(UserError, match="found an empty one"):
        split_sources(value)


def test_numbers():
    assert split_numbers("weights", "") == ()
    assert split_numbers("weights", "1,0.5") == (1.0, 0.5)
    for value in ("1,,2", "1,", "x"):
        with pytest.raises(UserError, match=f"--weights is {value}: expected numbers"):
            split_numbers("weights", value)


@pytest.mark.parametrize("weight", [math.inf, math.nan, -1.0, 1e9])
def test_weights_that_are_no_numbers(weight):
    with pytest.raises(UserError, match="one number, 0 or more, for each"):
        BuildOptions(("a.txt",), "t", weights=(weight,)).checked()
