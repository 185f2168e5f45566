"""Masks: counts, units, replacements and their statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.masking import MaskingConfig, mask_tokens

# A vocabulary of 50: 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP], 4 [MASK], 5 … 34 words, 35 … 49 '##'.
V, CLS, SEP, MASK = 50, 2, 3, 4
IS_SPECIAL = np.arange(V) < 5
IS_CONTINUATION = np.arange(V) >= 35


def mask(seed, input_ids, num_tokens, config, **keywords):
    return mask_tokens(
        np.random.default_rng(seed),
        np.asarray(input_ids, np.uint16),
        np.asarray(num_tokens),
        config,
        mask_id=MASK,
        is_special_V=IS_SPECIAL,
        is_continuation_V=IS_CONTINUATION,
        **keywords,
    )


def random_batch(rng, batch, length):
    """[CLS] A [SEP] B [SEP] and padding, of random lengths and with some [UNK]."""
    ids = rng.integers(5, V, (batch, length))
    ids[rng.random((batch, length)) < 0.02] = 1
    num_tokens = rng.integers(5, length + 1, batch)
    ids[:, 0] = CLS
    ids[np.arange(batch), num_tokens // 2] = SEP
    ids[np.arange(batch), num_tokens - 1] = SEP
    ids[np.arange(length) >= num_tokens[:, None]] = 0
    return ids, num_tokens


def units(ids_L, num_tokens, whole_word, spans=()):
    """The runs of positions that go together, by the definition in plain Python."""
    found = []
    for position in range(num_tokens):
        if IS_SPECIAL[ids_L[position]]:
            continue
        joins = whole_word and IS_CONTINUATION[ids_L[position]]
        joins = joins and found and found[-1][-1] == position - 1
        in_span = any(start < position < end for start, end in spans)
        if any(position in (start, end) for start, end in spans):
            joins = False
        in_span = in_span and found and found[-1][-1] == position - 1
        if joins or in_span:
            found[-1].append(position)
        else:
            found.append([position])
    return found


def test_whole_word_example():
    config = MaskingConfig(0.4, 2, mask_fraction=1.0, random_fraction=0.0, whole_word=True)
    got = mask(1, [[CLS, 5, 6, 40, SEP, 0]], [5], config)
    # Two tokens are asked for: the word 6 40 fits; or 5 comes first and the word no longer does.
    outcomes = {
        (6, 40): ([[CLS, 5, MASK, MASK, SEP, 0]], [[2, 3]]),
        (5, 0): ([[CLS, MASK, 6, 40, SEP, 0]], [[1, 0]]),
    }
    input_ids, positions = outcomes[tuple(got.ids_BM[0].tolist())]
    assert got.input_ids_BL.tolist() == input_ids
    assert got.positions_BM.tolist() == positions


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    # round(n * 0.15), half to even, at least 1, at most 20, as the original counts.
    [(3, 1), (10, 2), (30, 4), (50, 8), (90, 14), (128, 19), (200, 20)],
)
def test_count_includes_special_tokens(num_tokens, expected):
    ids = np.full((1, 256), 7)
    ids[0, 0], ids[0, num_tokens - 1] = CLS, SEP
    assert mask(0, ids, [num_tokens], MaskingConfig()).num_masked_B.tolist() == [expected]


def test_nothing_to_mask():
    got = mask(0, [[CLS, 1, SEP, SEP], [0, 0, 0, 0]], [4, 0], MaskingConfig(0.5, 3))
    assert got.num_masked_B.tolist() == [0, 0]
    assert got.input_ids_BL.tolist() == [[CLS, 1, SEP, SEP], [0, 0, 0, 0]]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 6),
    length=st.integers(5, 70),
    prob=st.floats(0.05, 0.9),
    cap=st.integers(1, 30),
    whole_word=st.booleans(),
    max_ngram=st.integers(1, 3),
)
def test_properties(seed, batch, length, prob, cap, whole_word, max_ngram):
    config = MaskingConfig(prob, cap, whole_word=whole_word, max_ngram=max_ngram)
    ids, num_tokens = random_batch(np.random.default_rng(seed), batch, length)
    before = ids.copy()
    got = mask(seed, ids, num_tokens, config)
    again = mask(seed, ids, num_tokens, config)
    assert all(np.array_equal(a, b) for a, b in zip(got, again, strict=True))
    assert np.array_equal(ids, before)
    for i in range(batch):
        count = got.num_masked_B[i]
        positions = got.positions_BM[i, :count]
        assert (np.diff(positions) > 0).all()
        assert (got.positions_BM[i, count:] == 0).all() and (got.ids_BM[i, count:] == 0).all()
        # No token lost or invented: putting the originals back gives the input.
        restored = got.input_ids_BL[i].copy()
        restored[positions] = got.ids_BM[i, :count]
        assert np.array_equal(restored, ids[i])
        assert not IS_SPECIAL[got.ids_BM[i, :count]].any()
        replaced = got.input_ids_BL[i, positions]
        assert not (IS_SPECIAL[replaced] & (replaced != MASK)).any()
        runs = units(ids[i], num_tokens[i], whole_word)
        wanted = min(cap, max(1, round(int(num_tokens[i]) * prob)))
        if not whole_word and max_ngram == 1:
            assert count == min(wanted, sum(map(len, runs)))
        assert count <= wanted
        chosen = set(positions.tolist())
        left = wanted - count
        for run in runs:
            assert len(chosen & set(run)) in (0, len(run))  # whole units only
            if not chosen & set(run):
                assert len(run) > left  # a unit is skipped only where it does not fit


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(12, 60))
def test_given_spans_are_units(seed, length):
    rng = np.random.default_rng(seed)
    ids, num_tokens = random_batch(rng, 2, length)
    starts = [1, 5]
    spans = [(0, s, s + 3) for s in starts if s + 3 <= num_tokens[0] // 2]
    got = mask(
        seed, ids, num_tokens, MaskingConfig(0.3, 10), spans_S3=np.array(spans).reshape(-1, 3)
    )
    chosen = set(got.positions_BM[0, : got.num_masked_B[0]].tolist())
    for run in units(ids[0], num_tokens[0], False, [(s, e) for _, s, e in spans]):
        assert len(chosen & set(run)) in (0, len(run))


def assert_share(count, total, expected, sigmas=5.0):
    """5 standard errors: a correct program fails once in 1.7 million seeds."""
    error = (expected * (1 - expected) / total) ** 0.5
    assert abs(count / total - expected) < sigmas * error, (count / total, expected)


def test_replacements_are_80_10_10():
    ids = np.full((4000, 128), 7)
    ids[:, 0], ids[:, -1] = CLS, SEP
    got = mask(3, ids, np.full(4000, 128), MaskingConfig())
    seen = np.take_along_axis(got.input_ids_BL, got.positions_BM, 1)[:, :19].ravel()
    assert_share((seen == MASK).sum(), seen.size, 0.8)
    # A random token is the original itself in one of 45 cases.
    assert_share((seen == 7).sum(), seen.size, 0.1 + 0.1 / 45)
    drawn = np.bincount(seen, minlength=V)[[i for i in range(5, V) if i != 7]]
    expected = seen.size * 0.1 / 45
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 44 + 5 * (2 * 44) ** 0.5  # 44 tokens, uniform


@pytest.mark.parametrize("config", [MaskingConfig(), MaskingConfig(whole_word=True)])
def test_positions_are_uniform(config):
    ids = np.full((20_000, 34), 7)
    ids[:, 0], ids[:, -1] = CLS, SEP
    got = mask(4, ids, np.full(20_000, 34), config)
    count = int(got.num_masked_B[0])
    drawn = np.bincount(got.positions_BM[:, :count].ravel(), minlength=34)[1:33]
    expected = 20_000 * count / 32
    assert ((drawn - expected) ** 2 / expected).sum() < 32 + 5 * (2 * 32) ** 0.5


def test_ngram_lengths_fall_as_1_over_n():
    # One unit is asked for at first; a cap of 3 lets a first n-gram of any length through.
    ids = np.full((30_000, 40), 7)
    ids[:, 0], ids[:, -1] = CLS, SEP
    config = MaskingConfig(0.075, 3, max_ngram=3)
    got = mask(5, ids, np.full(30_000, 40), config)
    assert (got.num_masked_B == 3).all()
    runs = np.diff(got.positions_BM, axis=1) == 1
    # Three in a row: n = 3 first (chance 2/11), or shorter runs that happen to touch.
    share = runs.all(1).mean()
    assert 2 / 11 < share < 2 / 11 + 0.06


def test_rates_are_parameters():
    ids = np.full((500, 100), 7)
    ids[:, 0], ids[:, -1] = CLS, SEP
    config = MaskingConfig(0.3, 40, mask_fraction=1.0, random_fraction=0.0)
    got = mask(6, ids, np.full(500, 100), config)
    assert (got.num_masked_B == 30).all()
    assert (np.take_along_axis(got.input_ids_BL, got.positions_BM[:, :30], 1) == MASK).all()


def test_whole_word_needs_continuations():
    with pytest.raises(ValueError, match="is_continuation_V"):
        mask_tokens(
            np.random.default_rng(0),
            np.full((1, 5), 7, np.uint16),
            np.array([5]),
            MaskingConfig(whole_word=True),
            mask_id=MASK,
            is_special_V=IS_SPECIAL,
        )


@pytest.mark.parametrize(("max_ngram", "least"), [(3, 0.75), (10, 0.55)])
def test_the_first_tokens_of_a_segment_are_masked_nearly_as_often_as_others(max_ngram, least):
    """Runs that all began where they are drawn masked them 0.68 and 0.40 times as often."""
    ids = np.full((4_000, 66), 7)
    ids[:, 0] = CLS
    ids[:, 32] = ids[:, -1] = SEP
    got = mask(0, ids, np.full(4_000, 66), MaskingConfig(0.15, 20, max_ngram=max_ngram))
    rows = np.arange(20) < got.num_masked_B[:, None]
    share_L = np.bincount(got.positions_BM[rows], minlength=66) / 4_000
    inner = share_L[12:20].mean()
    for edge in (1, 31, 33, 64):
        assert share_L[edge] > least * inner, (edge, share_L[edge], inner)
