"""The builder: what it writes, that it always writes the same, and what it refuses."""

import dataclasses
import json
import os
import random
import re
import shutil

import numpy as np
import pytest
from corpora import make_documents, shas, write_jsonl

from bert_jax.cli import UserError
from bert_jax.data.records import NO_NEXT_SENTENCE_LABEL, Manifest
from data_prep import build as build_module
from data_prep.build import BuildOptions
from data_prep.build import run as build
from data_prep.check import run as check
from data_prep.checking.tally import read_examples
from data_prep.examples import shards, token_store
from data_prep.options import arguments


def examples_of(data_dir, split="train"):
    manifest = Manifest.read(data_dir)
    blocks = [
        block
        for shard in manifest.splits[split]
        for block in read_examples(f"{data_dir}/{shard.name}", manifest.dtype)
    ]
    return np.concatenate(blocks)


def unmasked(examples):
    """The ids before masking, without padding."""
    for example in examples:
        ids = example["input_ids"].copy()
        m = example["num_masked"]
        ids[example["masked_lm_positions"][:m]] = example["masked_lm_ids"][:m]
        yield ids[: example["num_tokens"]].tolist()


def test_files(built, tokenizer):
    directory, manifest = built
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        "dataset.json",
        "document_hashes-train.npy",
        "document_hashes-validation.npy",
        "num_tokens-train.npy",
        "num_tokens-validation.npy",
        "token_counts.npy",
        "tokenizer",
        *(f"train-0000{i}-of-00004.array_record" for i in range(4)),
        "validation-00000-of-00001.array_record",
    ]
    assert manifest.tokenizer_fingerprint == tokenizer.fingerprint
    assert Manifest.read(directory) == manifest


def test_statistics_are_those_of_the_examples(built, tokenizer):
    directory, manifest = built
    examples = examples_of(directory)
    counts = manifest.statistics["splits"]["train"]
    assert manifest.num_examples("train") == counts["examples"] == len(examples)
    assert counts["example_tokens"] == examples["num_tokens"].sum()
    assert counts["label_0"] == (examples["next_sentence_label"] == 0).sum()
    assert counts["masked"] == examples["num_masked"].sum()
    lengths = np.load(directory / "num_tokens-train.npy")
    assert lengths.dtype == np.uint16 and np.array_equal(lengths, examples["num_tokens"])
    token_counts = np.load(directory / "token_counts.npy")
    flat = np.concatenate([ids for ids in unmasked(examples)])
    expected = np.bincount(flat, minlength=tokenizer.vocab_size)
    expected[[tokenizer.start_id, tokenizer.separator_id]] = 0
    assert np.array_equal(token_counts, expected)
    chance = expected[expected > 0] / expected.sum()
    entropy = -(chance * np.log(chance)).sum()
    assert manifest.statistics["unigram_entropy_nats"] == pytest.approx(entropy)


def test_segments_are_text_of_one_document_each(built, corpus_file, tokenizer):
    """Every A and B occurs in a document; IsNext pairs are adjacent, random ones of two."""
    directory, _ = built
    with open(corpus_file) as file:
        texts = [json.loads(line)["text"] for line in file]
    documents = [" ".join(map(str, tokenizer.encode(text))) for text in texts]
    rng = random.Random(0)
    for split in ("train", "validation"):
        examples = examples_of(directory, split)
        chosen = examples[rng.sample(range(len(examples)), min(len(examples), 150))]
        for example, ids in zip(chosen, unmasked(chosen), strict=True):
            second = int(example["second_start"])
            assert ids[0] == tokenizer.start_id
            assert ids[second - 1] == ids[-1] == tokenizer.separator_id
            a, b = (" ".join(map(str, part)) for part in (ids[1 : second - 1], ids[second:-1]))
            homes_a = {i for i, document in enumerate(documents) if a in document}
            homes_b = {i for i, document in enumerate(documents) if b in document}
            assert homes_a and homes_b
            if example["next_sentence_label"] == 0:
                assert homes_a & homes_b
            elif len(homes_a) == len(homes_b) == 1:
                assert homes_a != homes_b


def test_is_next_share(built):
    directory, _ = built
    for split in ("train", "validation"):
        labels = examples_of(directory, split)["next_sentence_label"]
        assert abs((labels == 0).sum() - len(labels) / 2) <= 4 * 4  # at most 4 a shard


def test_validation_documents_are_in_no_training_example(tmp_path, options):
    manifest = build(
        dataclasses.replace(options, validation_fraction=0.3), tmp_path / "data", workers=1
    )
    train = {tuple(ids) for ids in unmasked(examples_of(tmp_path / "data"))}
    validation = {tuple(ids) for ids in unmasked(examples_of(tmp_path / "data", "validation"))}
    assert not train & validation
    share = manifest.statistics["splits"]["validation"]["documents"] / 400
    assert 0.2 < share < 0.4


def test_same_bytes_with_any_workers(tmp_path, options, built):
    assert shas(build(options, tmp_path / "two", workers=2)) == shas(built[1])


def test_same_bytes_with_beam(tmp_path, options, built):
    pytest.importorskip("apache_beam")
    assert shas(build(options, tmp_path / "beam", runner="beam")) == shas(built[1])


def test_same_bytes_in_a_bucket(options, built, bucket):
    assert shas(build(options, "gs://bucket/data", workers=1)) == shas(built[1])
    assert "data/dataset.json" in bucket.names()
    assert not any(".build" in name for name in bucket.names())


def test_same_bytes_from_many_small_units(tmp_path, options, monkeypatch):
    monkeypatch.setattr("data_prep.sources.corpus.UNIT_BYTES", 20_000)
    several = build(options, tmp_path / "a", workers=1)
    assert shas(build(options, tmp_path / "b", workers=1)) == shas(several)


def test_the_seed_changes_everything(tmp_path, options, built):
    other = build(dataclasses.replace(options, seed=1), tmp_path / "data", workers=1)
    same = set(shas(other).items()) & set(shas(built[1]).items())
    assert {re.split("[-/]", name)[0] for name, _ in same} == {"document_hashes", "tokenizer"}


def test_generators_take_all_bits_of_their_keys():
    generators = (shards._generator(7, i) for i in range(32))
    keys = np.array([g.bit_generator.state["state"]["key"] for g in generators])
    # Of a large and a small integer numpy makes floats, in which the large one ends in zeros.
    mixed = keys[np.sum(keys >= 2**63, axis=1) == 1]
    assert np.any(mixed.max(axis=1) & 0x7FF)


def test_blocks_of_a_huge_document(tmp_path, tokenizer_dir, monkeypatch):
    """Its examples come all at once, and are cut into as many blocks as they fill."""
    monkeypatch.setattr(shards, "BLOCK_EXAMPLES", 64)
    sizes = []
    finished = shards.ShardExamples._finished

    def noting(self, examples, block):
        sizes.append((block, len(examples)))
        return finished(self, examples, block)

    monkeypatch.setattr(shards.ShardExamples, "_finished", noting)
    source = write_jsonl(tmp_path / "c.jsonl", [" ".join(make_documents(300))])
    options = BuildOptions(
        (source,),
        tokenizer_dir,
        objective="doc_sentences",
        dupe_factor=1,
        validation_fraction=0.0,
    )
    count = build(options, tmp_path / "data", workers=1).num_examples("train")
    assert count > 3 * 64
    assert sizes == [(i, min(64, count - 64 * i)) for i in range(-(-count // 64))]


def test_an_option_that_an_older_data_set_lacks_has_its_default(built, options, tmp_path):
    directory = shutil.copytree(built[0], tmp_path / "data")
    manifest = Manifest.read(directory)
    del manifest.arguments["document_per_line"]
    manifest.write(directory)
    assert build(options, directory) == manifest
    with pytest.raises(UserError, match="--document_per_line was False and is now True"):
        build(dataclasses.replace(options, document_per_line=True), directory)


def test_every_file_has_its_checksum(built):
    directory, manifest = built
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    files -= {"tokenizer", "dataset.json"}
    assert files == shas(manifest).keys()
    for shard in manifest.splits["train"]:
        assert shard.num_bytes == (directory / shard.name).stat().st_size


def test_built_already(built, options, caplog):
    directory, manifest = built
    before = os.stat(directory / "dataset.json").st_mtime_ns
    assert build(options, directory) == manifest
    vocab = os.path.join(options.tokenizer, "vocab.txt")  # the same tokenizer
    assert build(dataclasses.replace(options, tokenizer=vocab), directory) == manifest
    assert os.stat(directory / "dataset.json").st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 20),
        ({"masked_lm_prob": 0.3}, 39),
        ({"max_seq_length": 512}, 77),
        ({"max_seq_length": 100, "masked_lm_prob": 0.07}, 7),
        ({"masked_lm_prob": 1e-9}, 1),
        ({"max_seq_length": 512, "max_predictions_per_seq": 20}, 20),
    ],
)
def test_predictions_follow_rate_and_length(options, change, expected):
    options = dataclasses.replace(options, **change)
    assert options.checked().max_predictions_per_seq == expected
    assert arguments(options)["max_predictions_per_seq"] == expected
    assert options.masking_config.max_predictions_per_seq == expected


def test_the_default_is_stored_as_a_number(built, options):
    directory, manifest = built
    assert manifest.arguments["max_predictions_per_seq"] == 20
    given = dataclasses.replace(options, max_predictions_per_seq=20)
    assert build(given, directory) == manifest


def test_the_tokenizer_takes_what_the_examples_need(tmp_path, options, built):
    build(dataclasses.replace(options, max_seq_length=600, dupe_factor=1), tmp_path, workers=1)
    for directory, length in ((built[0], 512), (tmp_path, 600)):
        config = json.loads((directory / "tokenizer" / "tokenizer_config.json").read_text())
        assert config["model_max_length"] == length


@pytest.mark.parametrize("objective", ["sop", "full_sentences", "doc_sentences"])
def test_objectives(tmp_path, options, objective, tokenizer):
    options = dataclasses.replace(options, objective=objective, dupe_factor=1)
    build(options, tmp_path / "data", workers=1)
    assert check(tmp_path / "data", workers=1).is_healthy
    examples = examples_of(tmp_path / "data")
    if objective == "sop":
        share = (examples["next_sentence_label"] == 0).mean()
        assert abs(share - 0.5) < 5 * 0.5 / len(examples) ** 0.5  # 5 standard errors
    else:
        assert (examples["next_sentence_label"] == NO_NEXT_SENTENCE_LABEL).all()
        assert (examples["second_start"] == examples["num_tokens"]).all()


def test_sop_swaps_what_was_in_order(tmp_path, tokenizer_dir, tokenizer):
    texts = [" ".join(f"{w}." for w in d.replace(".", "").split()) for d in make_documents(60)]
    source = write_jsonl(tmp_path / "c.jsonl", texts)
    options = BuildOptions((source,), tokenizer_dir, objective="sop", dupe_factor=1)
    build(options, tmp_path / "data", workers=1)
    documents = [" ".join(map(str, tokenizer.encode(text))) for text in texts]
    for example, ids in list(
        zip(
            examples_of(tmp_path / "data"),
            unmasked(examples_of(tmp_path / "data")),
            strict=True,
        )
    )[:40]:
        a, b = ids[1 : example["second_start"] - 1], ids[example["second_start"] : -1]
        first, second = (a, b) if example["next_sentence_label"] == 0 else (b, a)
        if example["num_tokens"] < 128:  # nothing was truncated
            assert any(" ".join(map(str, first + second)) in text for text in documents)


def test_dynamic_masking_writes_whole_text(tmp_path, options, tokenizer):
    manifest = build(dataclasses.replace(options, masking="dynamic"), tmp_path / "d", workers=1)
    assert "num_masked" not in manifest.dtype.names
    assert not (examples_of(tmp_path / "d")["input_ids"] == tokenizer.mask_id).any()


def test_duplicates_and_weights(tmp_path, tokenizer_dir):
    sources = [
        write_jsonl(tmp_path / f"{i}.jsonl", make_documents(500, seed=i, max_sentences=1))
        for i in range(3)
    ]
    options = BuildOptions(
        tuple(sources),
        tokenizer_dir,
        dupe_factor=2,
        weights=(1.0, 0.25, 0.0),
        validation_fraction=0.0,
        objective="doc_sentences",
    )
    manifest = build(options, tmp_path / "data", workers=1)
    count = manifest.num_examples("train")
    assert abs(count - (1000 + 250)) < 5 * 250**0.5  # 500 documents, half a copy each


def test_random_pairs_take_nothing_from_a_source_without_weight(tmp_path, tokenizer_dir, tokenizer):
    words = {"a": "bako duna.", "b": "felo gimi."}
    sources = []
    for name, sentence in words.items():
        texts = [" ".join([sentence] * (2 + i % 5)) for i in range(80)]
        sources.append(write_jsonl(tmp_path / f"{name}.jsonl", texts))
    options = BuildOptions(
        tuple(sources), tokenizer_dir, dupe_factor=1, weights=(1.0, 0.0), validation_fraction=0.0
    )
    build(dataclasses.replace(options, masking="dynamic"), tmp_path / "data", workers=1)
    examples = examples_of(tmp_path / "data")
    assert (examples["next_sentence_label"] == 1).sum() > 20
    excluded = np.setdiff1d(tokenizer.encode(words["b"]), tokenizer.encode(words["a"]))
    assert len(excluded) and not np.isin(examples["input_ids"], excluded).any()


def test_a_static_example_takes_at_most_420_bytes(tmp_path, options):
    options = dataclasses.replace(options, num_shards=1, dupe_factor=4, validation_fraction=0.0)
    manifest = build(options, tmp_path / "data", workers=1)
    [path] = (tmp_path / "data").glob("*.array_record")
    # A shard has 64 KiB of its own, whatever its size.
    assert (path.stat().st_size - 2**16) / manifest.num_examples("train") <= 420


@pytest.mark.parametrize(
    ("texts", "objective", "outcome"),
    [
        ([], "nsp", "holds no text"),
        (["", "  ", "\n"], "nsp", "holds no text: 3 documents were found, all empty"),
        (["Bako duna. Basto fe."], "nsp", "holds one document.*--objective=sop"),
        (["Bako duna. Basto fe."], "sop", 1),
        (["Bako duna. Basto fe."], "full_sentences", 1),
        (["Bako duna.", "Basto fe."], "nsp", 2),
        (["Bako duna.", "Basto fe."], "full_sentences", 1),
    ],
)
def test_tiny_corpora(tmp_path, tokenizer_dir, texts, objective, outcome):
    source = write_jsonl(tmp_path / "c.jsonl", texts)
    options = BuildOptions((source,), tokenizer_dir, objective=objective, dupe_factor=1)
    if isinstance(outcome, str):
        with pytest.raises(UserError, match=outcome):
            build(options, tmp_path / "data", workers=1)
        assert not (tmp_path / "data").exists()
    else:
        manifest = build(options, tmp_path / "data", workers=1)
        assert manifest.num_examples("train") == outcome


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_length": 4}, "--max_seq_length is 4: expected between 5 and 65535"),
        ({"max_predictions_per_seq": 200}, r"expected between 1 and max_seq_length \(128\)"),
        ({"dupe_factor": 0}, "--dupe_factor is 0: expected between 1 and 1000000"),
        ({"seed": -1}, "--seed is -1: expected from 0 to below"),
        ({"seed": 2**63}, "--seed is 9223372036854775808: expected from 0 to below"),
        ({"random_fraction": 0.5}, "--random_fraction is 0.5"),
        ({"weights": (1.0, 2.0)}, "one number, 0 or more, for each of the 1 sources"),
        ({"weights": (0.0,)}, r"--weights is \(0\.0,\): .* not all 0"),
        ({"input": ("missing.txt",)}, "missing.txt does not exist"),
        ({"input": ()}, "no input"),
        ({"language": "german"}, "--language is german: expected an ISO 639-1 code"),
        ({"format": "tfrecord", "masking": "dynamic"}, "use --masking=static"),
    ],
)
def test_mistakes(tmp_path, options, change, message):
    with pytest.raises(UserError, match=message):
        build(dataclasses.replace(options, **change), tmp_path / "data", workers=1)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"workers": 0}, "--workers is 0: expected at least 1"),
        ({"beam_options": "--region=R"}, "give --runner=beam too"),
    ],
)
def test_mistakes_in_how_to_run(tmp_path, options, how, message):
    with pytest.raises(UserError, match=message):
        build(options, tmp_path / "data", **how)
    assert not (tmp_path / "data").exists()


def test_tokenizer_directory_without_vocabulary(tmp_path, options):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no vocabulary"):
        build(dataclasses.replace(options, tokenizer=str(tmp_path / "empty")), tmp_path / "data")


def test_a_mistake_in_a_worker_process(tmp_path, tokenizer_dir):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00B\x00a")
    options = BuildOptions((str(tmp_path / "a.txt"),), tokenizer_dir)
    with pytest.raises(UserError, match="is not UTF-8"):
        build(options, tmp_path / "data", workers=2)
    assert not (tmp_path / "data").exists()


def test_command(tmp_path, corpus_file, tokenizer_dir, capsys):
    arguments = [f"--input={corpus_file}", f"--tokenizer={tokenizer_dir}", "--workers=1"]
    arguments += [f"--output={tmp_path / 'data'}", "--weights=0.5", "--whole_word_mask"]
    assert build_module.main(arguments) is None
    assert "train: 39" in capsys.readouterr().out
    recorded = Manifest.read(tmp_path / "data").arguments
    assert recorded["weights"] == [0.5] and recorded["whole_word_mask"] is True
    assert recorded["max_predictions_per_seq"] == 20
    flags = build_module._parser().parse_args([*arguments, "--max_predictions_per_seq=30"])
    assert flags.max_predictions_per_seq == 30
    with pytest.raises(UserError, match="--weights is x: expected numbers"):
        build_module.main([*arguments[:-2], "--weights=x"])


def test_splits_have_partners_of_their_own(tmp_path, tokenizer_dir):
    """nsp holds out two documents or none: a random B never comes from the other split."""
    documents = make_documents(4)
    source = write_jsonl(tmp_path / "c.jsonl", documents)
    manifest = build(BuildOptions((source,), tokenizer_dir), tmp_path / "data", workers=1)
    counts = manifest.statistics["splits"]
    assert counts["validation"]["documents"] == 2
    hashes = np.load(tmp_path / "data" / "document_hashes-validation.npy").tolist()
    assert set(hashes) < {token_store.content_hash(text) for text in documents}
