"""Packing: rows hold what fits, every example once, and the model computes what it does without."""

import itertools
import json

import jax
import numpy as np
import pytest
from small_run import make_tokenizer

from bert_jax.cli import UserError
from bert_jax.data import input_pipeline, packing, placing, tokenizer
from bert_jax.models import heads
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import sharding
from bert_jax.planning import compiled, lengths
from bert_jax.training import phases
from data_prep.build import run as build
from data_prep.options import BuildOptions

LENGTH, MOST = 64, 4


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data set as the builder makes it: unmasked examples, many of them short."""
    directory = tmp_path_factory.mktemp("built")
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(95)]
    sentence = lambda: " ".join(rng.choice(words, rng.integers(1, 10)))  # noqa: E731
    documents = ["\n".join(sentence() for _ in range(rng.integers(2, 9))) for _ in range(40)]
    (directory / "text.txt").write_text("\n\n".join(documents))
    tokenizer.save(make_tokenizer(), directory / "tokenizer")
    options = BuildOptions(
        (str(directory / "text.txt"),),
        str(directory / "tokenizer"),
        sentence_per_line=True,
        max_seq_length=LENGTH,
        short_seq_prob=0.5,
        dupe_factor=6,
        num_shards=3,
        masking="dynamic",
        max_predictions_per_seq=9,
    )
    build(options, directory / "data", workers=1)
    return directory / "data"


@pytest.fixture
def config(config, built, monkeypatch):
    monkeypatch.setattr(packing, "GROUP_RECORDS", 2)  # several groups of a small data set
    config.data_dir = str(built)
    config.packing = MOST
    config.model.update(
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return config


def open_data(config, packed=MOST):
    config.packing = packed
    return input_pipeline.open_data(config.data_dir, "train", config)


def examples_of(batch) -> list[tuple]:
    """A batch's examples as ids, types, label, and predicted positions with their ids."""
    result = []
    packed = "position_ids" in batch
    for i, ids in enumerate(batch["input_ids"]):
        labels = batch["next_sentence_labels"][i]
        for n, label in enumerate(labels if packed else [labels]):
            (where,) = np.nonzero(batch["attention_mask"][i] == n + 1)
            if not len(where):
                assert label == -1
                continue
            first, last = where[0], where[-1]
            assert last - first + 1 == len(where)
            if packed:
                assert batch["first_token_positions"][i, n] == first
                np.testing.assert_array_equal(batch["position_ids"][i, where], where - first)
            predicted = [
                (int(position - first), int(token))
                for position, token, weight in zip(
                    batch["masked_lm_positions"][i],
                    batch["masked_lm_ids"][i],
                    batch["masked_lm_weights"][i],
                    strict=True,
                )
                if weight and first <= position <= last
            ]
            types = batch["token_type_ids"][i, where]
            result.append((tuple(ids[where]), tuple(types), int(label), tuple(predicted)))
    return result


def naive_first_fit(lengths, length, most) -> set[tuple[int, ...]]:
    rows = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row in rows:
            if len(row) < most and sum(lengths[j] for j in row) + lengths[i] <= length:
                row.append(i)
                break
        else:
            rows.append([i])
    return {tuple(sorted(row)) for row in rows}


@pytest.mark.parametrize(("length", "most"), [(32, 2), (32, 8), (512, 8)])
def test_first_fit(length, most):
    num_tokens = np.random.default_rng(0).integers(5, length + 1, (6, 100)).astype(np.uint16)
    num_tokens[:, :60] //= np.uint16(3)
    num_tokens = np.maximum(num_tokens, 3)
    num_tokens[5, 70:] = 0  # the last group is smaller
    rows = packing.first_fit(num_tokens, length, most)
    for of_group, row in zip(num_tokens, rows, strict=True):
        assert ((row >= 0) == (of_group > 0)).all()
        members = [np.flatnonzero(row == r) for r in range(row.max() + 1)]
        assert sum(map(len, members)) == (of_group > 0).sum()
        assert max(map(len, members)) <= most
        assert max(of_group[m].sum() for m in members) <= length
        real = [int(n) for n in of_group if n]
        assert {tuple(m.tolist()) for m in members} == naive_first_fit(real, length, most)
        longest = [m[of_group[m].argmax()] for m in members]
        assert longest == sorted(longest)


@pytest.mark.parametrize(
    ("length", "prob", "of_example", "most"),
    [(128, 0.15, 20, 8), (512, 0.15, 77, 8), (32, 0.15, 5, 4), (64, 0.4, 3, 6), (64, 0.01, 5, 6)],
)
def test_predictions_of_a_row_always_fit(length, prob, of_example, most):
    arguments = {
        "max_seq_length": length,
        "masked_lm_prob": prob,
        "max_predictions_per_seq": of_example,
    }
    bound = packing.max_predictions(arguments, most)
    # The worst rows, by dynamic programming over the number of examples and of tokens.
    n = np.arange(3, length + 1)
    predictions = np.clip(np.rint(n * prob), 1, of_example).astype(int)
    worst = np.zeros(length + 1, int)
    for _ in range(most):
        longer = worst.copy()
        for tokens, count in zip(n, predictions, strict=True):
            longer[tokens:] = np.maximum(longer[tokens:], worst[: length + 1 - tokens] + count)
        worst = longer
    assert worst[-1] <= bound <= worst[-1] + 2
    assert packing.max_predictions(arguments, 0) == of_example


def test_an_epoch_is_every_example_once_with_the_masks_it_has_unpacked(config):
    packed, unpacked = open_data(config), open_data(config, 0)
    assert len(packed._order.rows_of_group) > 3 and packed.examples_per_row > 1.3
    assert packed.padding < 0.6 * unpacked.padding
    for epoch in range(2):
        rows = packed.read(epoch * packed.num_rows, (epoch + 1) * packed.num_rows)
        start = epoch * unpacked.num_examples
        expected = unpacked.read(start, start + unpacked.num_examples)
        assert sorted(examples_of(rows)) == sorted(examples_of(expected))
        assert rows["masked_lm_weights"].sum() == expected["masked_lm_weights"].sum()
        assert (rows["attention_mask"] == 0).mean() == pytest.approx(packed.padding)
        assert (expected["attention_mask"] == 0).mean() == pytest.approx(unpacked.padding)
        assert (rows["attention_mask"].max(1) > 1).mean() > 0.2


def test_masks_are_drawn_at_the_rate_that_the_run_asks_for(config):
    config.masked_lm_prob = 0.5
    data = open_data(config, 0)
    batch = data.read(0, 64)
    tokens_B, predicted_B = batch["attention_mask"].sum(1), batch["masked_lm_weights"].sum(1)
    assert data.max_predictions_per_row == LENGTH // 2
    np.testing.assert_array_equal(predicted_B, np.maximum(np.rint(0.5 * tokens_B), 1))
    config.masked_lm_prob = 0.0
    assert open_data(config, 0).contents == data.contents
    assert open_data(config, 0).fingerprint != data.fingerprint


def test_the_position_alone_decides(config):
    data, other = open_data(config), open_data(config)
    stop = 2 * data.num_rows + 50
    whole = data.read(0, stop)
    parts = [
        other.read(start, end) for start, end in itertools.pairwise([0, *range(7, stop, 23), stop])
    ]
    together = [example for part in parts for example in examples_of(part)]
    assert sorted(together) == sorted(examples_of(whole))
    batch, ends = data.read(100, 124), [slice(3, 9), slice(20, 24)]
    other._batch_size = 24
    for name, array in other._read_rows(100, ends).items():
        expected = np.concatenate([batch[name][3:9], batch[name][20:24]])
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_batch_shapes_are_those_of_batches(config):
    batch = open_data(config).read(0, 7)
    sizes = lengths.lengths_of(config)
    shapes = placing.batch_shapes(7, *sizes.values(), MOST)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }


def test_evaluation_reads_one_example_a_row(config):
    data = input_pipeline.open_eval_data(config)["eval_"]
    assert data.num_rows == data.num_examples
    assert "position_ids" not in next(iter(data.eval_batches(sharding.make_mesh(), 0)))


def loss_of(config, batch):
    """(loss, means) and gradients of a batch, with parameters that tell positions apart."""
    model = heads.make_model(config)
    objective = pretraining_objective(model)
    params = heads.init_params(model, jax.random.key(0))
    params = jax.tree.map(lambda x: 3 * x, params)

    def loss(params):
        sums, weights = objective.sums(params, batch, None), objective.weights(batch)
        means = {name: sums[name] / weights[name] for name in sums}
        return sum(means[name] for name in objective.losses), means

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize(
    "changes", [{}, {"scan_layers": True, "remat": "full"}], ids=["unrolled", "scanned"]
)
def test_packed_equals_unpacked(config, changes):
    """Losses, accuracies and gradients of a whole epoch's examples."""
    config.model.update(changes)
    packed, unpacked = open_data(config), open_data(config, 0)
    (loss, means), grads = loss_of(config, packed.read(0, packed.num_rows))
    (expected_loss, expected), expected_grads = loss_of(
        config, unpacked.read(0, unpacked.num_examples)
    )
    assert loss == pytest.approx(float(expected_loss), rel=1e-5)
    assert set(means) == {"mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    for name, value in means.items():
        assert value == pytest.approx(float(expected[name]), rel=1e-5), name
    for (path, grad), wanted in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True
    ):
        error = np.abs(grad - wanted).max() / np.abs(wanted).max()
        # Keys' biases shift all scores of a query alike: their gradient is zero, up to rounding.
        assert error < 1e-5 or np.abs(wanted).max() < 1e-7, jax.tree_util.keystr(path)


def test_examples_of_a_row_do_not_see_each_other(config):
    data = open_data(config)
    batch = data.read(0, data.num_rows)
    model = heads.make_model(config)
    params = jax.tree.map(lambda x: 3 * x, heads.init_params(model, jax.random.key(0)))
    (row,) = np.flatnonzero(batch["attention_mask"].max(1) == 3)[:1]
    batch = {name: x[row : row + 1] for name, x in batch.items()}
    number = batch["attention_mask"][0]

    def hidden_and_labels(ids):
        output = model.apply(
            {"params": params},
            ids,
            batch["attention_mask"],
            batch["token_type_ids"],
            None,
            None,
            batch["position_ids"],
            batch["first_token_positions"],
        )
        return np.asarray(output.hidden_BLD[0]), np.asarray(output.nsp_logits_B2[0])

    hidden, labels = hidden_and_labels(batch["input_ids"])
    for changed in range(4):  # 0: padding
        ids = np.where(number == changed, (batch["input_ids"] + 7) % 100, batch["input_ids"])
        other_hidden, other_labels = hidden_and_labels(ids)
        is_token = number > 0
        same = (np.abs(other_hidden - hidden).max(1) < 1e-6)[is_token]
        np.testing.assert_array_equal(same, number[is_token] != changed)
        same = np.abs(other_labels - labels).max(1) < 1e-6
        np.testing.assert_array_equal(same[:3], np.arange(1, 4) != changed)


def test_the_planned_step_is_the_one_that_trains(config):
    """Packed, its shapes come from the lengths and the config alone."""
    mesh = sharding.make_mesh(**config.mesh)
    (phase,) = phases.resolve(config)
    lowered, state, shapes = compiled.lower_step(phase, mesh, **lengths.lengths_of(config))
    batch = open_data(config).read(0, config.batch_size)
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in batch.items()}
    assert jax.tree.leaves(state)[0].shape == ()
    assert f"tensor<16x1x{LENGTH}x{LENGTH}xi1>" in lowered.as_text()


def test_origin_names_the_records_of_the_rows_examples(config, monkeypatch):
    data = open_data(config)
    rows = data.read(5, 9)
    origin = data.origin(5, 9)
    names = [
        f"{shard.name}#{number}"
        for shard in data.manifest.splits["train"]
        for number in range(-(-shard.num_examples // 64))
    ]
    wanted = examples_of(rows)
    found = [
        example
        for name in origin["records"]
        for example in examples_of(data.to_batch(data.examples(0, np.array([names.index(name)]))))
    ]
    assert set(wanted) <= set(found) and origin["rows"] == [5, 9]
    # A token id beyond the vocabulary, in one of those examples and in one of another row.
    elsewhere = next(example for example in found if example not in wanted)
    real = data.examples

    def damaged(epoch, numbers):
        examples = real(epoch, numbers)
        batch = examples_of(data.to_batch(examples))
        bad = [i for i, e in enumerate(batch) if e in (wanted[0], elsewhere)]
        examples["input_ids"][bad, 1] = 200
        return examples

    monkeypatch.setattr(data, "examples", damaged)
    (bad,) = data.origin(5, 9)["out_of_vocabulary"]
    assert bad["token_id"] == 200 and bad["record"] in origin["records"]
    record = real(0, np.array([names.index(bad["record"])]))
    assert examples_of(data.to_batch(record))[bad["example"]] == wanted[0]


def test_the_packing_is_worked_out_once(config, built, tmp_path, monkeypatch):
    for path in built.iterdir():
        if not path.name.startswith("packing-"):
            (tmp_path / path.name).symlink_to(path)
    config.data_dir = str(tmp_path)
    first = open_data(config)
    kept = tmp_path / f"packing-train-{MOST}.npy"
    right = kept.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "first_fit", lambda *_: pytest.fail("packed again"))
        assert examples_of(open_data(config).read(3, 40)) == examples_of(first.read(3, 40))
    # What does not hold these examples is not believed.
    rows = np.load(kept)
    for damaged in (rows[:-1], np.zeros_like(rows), rows.astype(np.int32)):
        np.save(kept, damaged)
        assert open_data(config).num_rows == first.num_rows
        assert kept.read_bytes() == right
    kept.write_bytes(right[:100])
    assert open_data(config).num_rows == first.num_rows
    # A data set that may only be read is packed at each start.
    kept.unlink()

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(packing.files, "write_whole", refused)
    assert open_data(config).num_rows == first.num_rows and not kept.exists()


def test_what_cannot_be_packed_is_refused(config, tmp_path, built):
    for impossible in (-1, 1):
        with pytest.raises(UserError, match=f"config.packing={impossible}: expected 0 for"):
            open_data(config, impossible)
    for path in built.iterdir():
        if path.name != "num_tokens-train.npy":
            (tmp_path / path.name).symlink_to(path)
    config.data_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"num_tokens-train\.npy is missing"):
        open_data(config)
    # Older data sets do not list their files.
    manifest = tmp_path / "dataset.json"
    fields = json.loads(manifest.read_text())
    del fields["checksum"], fields["statistics"]["files"]
    manifest.unlink()
    manifest.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"has no num_tokens-train\.npy, which packing needs"):
        open_data(config)
    assert open_data(config, 0).num_rows
    np.save(tmp_path / "num_tokens-train.npy", np.full(3, 9, np.uint16))
    with pytest.raises(UserError, match=r"3 lengths.*rebuild the data set"):
        open_data(config)
