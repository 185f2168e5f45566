"""Which tokens are paired, with which label."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.examples import pairing
from data_prep.examples.pairing import Chunk, IsNextBalance, SentencePacker

OFFSETS = [0, 4, 9, 12]
SENTENCES = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def offsets_of(lengths, start=0):
    return [start, *(start + np.cumsum(lengths)).tolist()]


def uniforms(seed, count):
    return np.random.default_rng(seed).random((count, 4)).tolist()


def test_next_sentence_example():
    coins_say_next = [[0.0, 0.9]] * 3
    got = pairing.next_sentence_chunks(OFFSETS, 9, coins_say_next, IsNextBalance())
    assert got == [Chunk(0, 4, 9), Chunk(9, 12, None)]


def test_random_b_gives_the_sentences_after_a_back():
    coins_say_random = [[0.0, 0.1]] * 3
    got = pairing.next_sentence_chunks(OFFSETS, 9, coins_say_random, IsNextBalance())
    assert got == [Chunk(0, 4, None), Chunk(4, 9, None), Chunk(9, 12, None)]


def test_sentence_order_example():
    assert pairing.sentence_order_chunks(OFFSETS, 9, [[0.0]] * 3) == [
        (0, 4, 9),
        (9, 10, 12),
    ]


def test_sentence_order_leaves_out_a_lone_token():
    assert pairing.sentence_order_chunks([0, 1], 9, [[0.5]]) == []


@settings(max_examples=200, deadline=None)
@given(lengths=SENTENCES, target=st.integers(2, 125), seed=st.integers(0, 2**32))
def test_next_sentence_chunks_partition_the_document(lengths, target, seed):
    offsets = offsets_of(lengths, start=1000)
    chunks = pairing.next_sentence_chunks(
        offsets, target, uniforms(seed, len(lengths)), IsNextBalance()
    )
    at = offsets[0]
    for start, middle, end in chunks:
        assert start == at < middle
        assert middle in offsets and (end is None or end in offsets)
        at = middle if end is None else end
        if end is not None:
            assert middle < end
            # The last sentence is the one that reaches the target, or the document's last.
            before_last = offsets[offsets.index(end) - 1]
            assert before_last - start < target
            assert end - start >= target or end == offsets[-1]
    assert at == offsets[-1]


@settings(max_examples=200, deadline=None)
@given(lengths=SENTENCES, target=st.integers(2, 125), seed=st.integers(0, 2**32))
def test_sentence_order_chunks_partition_the_document(lengths, target, seed):
    offsets = offsets_of(lengths)
    chunks = pairing.sentence_order_chunks(offsets, target, uniforms(seed, len(lengths)))
    covered = [range(start, end) for start, _, end in chunks]
    lost = set(range(offsets[-1])) - set(itertools.chain(*covered))
    assert sum(map(len, covered)) + len(lost) == offsets[-1]
    assert len(lost) <= 1  # a last sentence of one token
    assert all(start < middle < end for start, middle, end in chunks)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    singles=st.floats(0, 0.45),
    count=st.integers(1, 3000),
)
def test_is_next_share_is_one_half(seed, singles, count):
    rng = random.Random(seed)
    balance = IsNextBalance()
    labels = [balance.decide(rng.random() < 0.5, rng.random() >= singles) for _ in range(count)]
    assert abs(sum(labels) - count / 2) <= IsNextBalance.BOUND + 60 * singles


def test_one_sentence_chunks_are_never_is_next():
    balance = IsNextBalance()
    assert not any(balance.decide(True, False) for _ in range(100))


def test_labels_follow_their_coins_inside_the_bounds():
    balance = IsNextBalance()
    assert [balance.decide(coin, True) for coin in (True, False, True)] == [True, False, True]


@given(
    budget=st.integers(2, 509),
    coin=st.floats(0, 1, exclude_max=True),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_target_length(budget, coin, uniform):
    got = pairing.target_length(budget, 0.1, coin, uniform)
    if coin >= 0.1:
        assert got == budget
    else:
        assert 2 <= got <= budget


def published_truncation(rng, a_length, b_length, budget):
    """truncate_seq_pair of google-research/bert; counts the tokens dropped from the fronts."""
    lengths, fronts = [a_length, b_length], [0, 0]
    while sum(lengths) > budget:
        longer = 0 if lengths[0] > lengths[1] else 1
        lengths[longer] -= 1
        fronts[longer] += rng.random() < 0.5
    return lengths, fronts


@settings(max_examples=300, deadline=None)
@given(
    a=st.integers(1, 300), b=st.integers(1, 300), budget=st.integers(2, 509), seed=st.integers(0, 9)
)
def test_truncation_lengths_are_the_published_ones(a, b, budget, seed):
    lengths, _ = published_truncation(random.Random(seed), a, b, budget)
    got = pairing.truncate_pairs(np.random.default_rng(seed), np.array([a]), np.array([b]), budget)
    assert [got.a_length[0], got.b_length[0]] == lengths
    assert 0 <= got.a_front[0] <= a - lengths[0]
    assert 0 <= got.b_front[0] <= b - lengths[1]


def test_truncation_fronts_are_the_published_distribution():
    n = 20_000
    got = pairing.truncate_pairs(
        np.random.default_rng(0), np.full(n, 100), np.full(n, 40), budget=125
    )
    assert (got.a_length == 85).all() and (got.b_front == 0).all()
    rng = random.Random(0)
    published = [published_truncation(rng, 100, 40, 125)[1][0] for _ in range(n)]
    ours, theirs = (np.bincount(x, minlength=16) for x in (got.a_front, published))
    used = ours + theirs > 20
    chi_square = ((ours - theirs)[used] ** 2 / (ours + theirs)[used]).sum()
    assert chi_square < used.sum() + 5 * (2 * used.sum()) ** 0.5  # 5 standard errors


@pytest.mark.parametrize(
    ("documents", "weights"),
    [
        ([6], [1.0]),
        ([2, 4], [0.5, 0.5]),
        ([1, 2, 3], [2.0, 0.0, 0.25]),
        ([0, 3, 0, 3], [1.0, 1.0, 1.0, 3.0]),
        ([3, 3], [0.1, 0.0]),
    ],
)
def test_partners_are_drawn_by_weight_from_the_others(documents, weights):
    partners = pairing.Partners(documents, weights)
    likely_D = np.repeat(weights, documents)
    uniform = np.random.default_rng(1).random(20_000)
    for document in np.flatnonzero(likely_D):
        drawn = np.bincount([partners.draw(document, u) for u in uniform], minlength=6)
        expected = likely_D.copy()
        expected[document] = 0
        expected *= len(uniform) / expected.sum()
        assert not drawn[expected == 0].any() and len(drawn) == 6
        some = expected > 0
        degrees = some.sum() - 1
        chi_square = ((drawn - expected)[some] ** 2 / expected[some]).sum()
        assert chi_square < degrees + 5 * (2 * degrees) ** 0.5  # 5 standard errors


def test_partners_of_few_documents():
    two = pairing.Partners([2], [1.0])
    assert [two.draw(d, 0.999) for d in (0, 1)] == [1, 0]
    # One document with a weight: all others will do.
    one = pairing.Partners([1, 2], [1.0, 0.0])
    assert {one.draw(0, u) for u in (0.0, 0.4, 0.6, 0.999)} == {1, 2}


def test_partners_at_the_ends_of_the_numbers():
    """The largest uniform number, and weights whose sums round."""
    last = np.nextafter(1.0, 0)
    for weights in ([0.1, 0.7, 0.3], [1 / 3, 0.0, 1e-9], [1e6, 1e-6, 0.0]):
        partners = pairing.Partners([3, 5, 7], weights)
        for document in np.flatnonzero(np.repeat(weights, [3, 5, 7])):
            for uniform in (0.0, last):
                other = partners.draw(document, uniform)
                assert other != document and np.repeat(weights, [3, 5, 7])[other] > 0


@pytest.mark.parametrize(("length", "end"), [(-3, 14), (1, 14), (4, 14), (5, 20), (99, 26)])
def test_filled_end(length, end):
    assert pairing.filled_end([10, 14, 20, 26], length) == end


def test_packer_example():
    packer = SentencePacker(10, cross_documents=True)
    assert packer.add_document([0, 4, 9]) == []
    assert packer.add_document([20, 23]) == [[(0, 9)]]
    assert packer.finish() == [[(20, 3)]]


def test_packer_crosses_documents_with_a_separator():
    packer = SentencePacker(10, cross_documents=True)
    assert packer.add_document([0, 4]) == []
    assert packer.add_document([20, 25]) == []
    assert packer.finish() == [[(0, 4), (20, 5)]]  # 4 + 1 + 5


@settings(max_examples=200, deadline=None)
@given(
    documents=st.lists(SENTENCES, min_size=1, max_size=8),
    budget=st.integers(2, 126),
    cross=st.booleans(),
)
def test_packer_loses_nothing(documents, budget, cross):
    packer = SentencePacker(budget, cross_documents=cross)
    examples, expected, start = [], [], 0
    for lengths in documents:
        offsets = offsets_of(lengths, start)
        examples += packer.add_document(offsets)
        expected += range(start, offsets[-1])
        start = offsets[-1] + 1000
        if not cross:
            assert packer.finish() == []
    examples += packer.finish()
    assert [t for example in examples for s, n in example for t in range(s, s + n)] == expected
    for spans in examples:
        assert sum(n for _, n in spans) + len(spans) - 1 <= budget
        if not cross:
            assert len(spans) == 1
