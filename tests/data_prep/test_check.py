"""The checker: healthy data passes, and each kind of defect is named."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from corpora import make_documents, write_jsonl
from etils import epath

from bert_jax.cli import UserError
from bert_jax.data.records import Manifest
from data_prep import check as check_module
from data_prep.build import BuildOptions
from data_prep.build import run as build
from data_prep.check import run as check
from data_prep.checking.examples import format_example
from data_prep.checking.report import lines
from data_prep.checking.tally import read_examples, tally_examples
from data_prep.examples import writers


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, corpus_file, tokenizer_dir):
    directory = tmp_path_factory.mktemp("check") / "data"
    options = BuildOptions((corpus_file,), tokenizer_dir, num_shards=3, dupe_factor=1)
    build(options, directory, workers=1)
    return directory


@pytest.fixture
def copy(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "copy")


def failing(report):
    return {measure.name for measure in report.measures if not measure.is_healthy}


@pytest.mark.parametrize("workers", [1, 2])
def test_healthy(data_dir, workers):
    report = check(data_dir, workers=workers)
    assert report.is_healthy and not report.problems
    assert all("expected" in line for line in list(lines(report))[:2])
    assert max(map(len, lines(report, 80))) <= 80
    manifest = Manifest.read(data_dir)
    for split, tally in report.tallies.items():
        assert tally.examples == manifest.num_examples(split)
        counts = manifest.statistics["splits"][split]
        assert tally.tokens == counts["example_tokens"] and tally.masked == counts["masked"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("train-00001-of-00003.array_record", "SHA-256"),
        ("validation-00000-of-00001.array_record", "SHA-256"),
        ("token_counts.npy", "SHA-256"),
        ("tokenizer/vocab.txt", "SHA-256"),
        ("tokenizer/tokenizer.json", "SHA-256"),
        ("tokenizer/tokenizer_config.json", "SHA-256"),
    ],
)
def test_changed_files(copy, name, problem):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    report = check(copy, workers=1)
    assert not report.is_healthy
    assert any(problem in found for found in report.problems)


def test_missing_shard(copy, capsys):
    (copy / "train-00002-of-00003.array_record").unlink()
    assert check_module.main([str(copy), "--workers=1"]) == 1
    assert "FAIL train-00002-of-00003.array_record is missing" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "changed", "all missing"])
def test_corrupted_shards_give_no_examples(copy, tmp_path, capsys, damage):
    shards = sorted(copy.glob("train-*"))
    for path in shards if damage == "all missing" else shards[:1]:
        path.unlink()
        if damage == "changed":
            path.write_bytes(b"garbage" * 1000)
    page = tmp_path / "report.html"
    flags = ["--workers=1", "--examples=2", f"--report={page}"]
    assert check_module.main([str(copy), *flags]) == 1
    left = damage != "all missing"
    assert capsys.readouterr().out.count("[CLS]") == 2 * left
    assert page.read_text().count("class='example'") == 5 * left


@pytest.mark.parametrize("split", ["train", "validation"])
def test_document_hashes_that_are_cut_off(copy, split):
    path = copy / f"document_hashes-{split}.npy"
    path.write_bytes(path.read_bytes()[:-4])
    report = check(copy, workers=1)
    assert report.problems == [f"{path.name} has changed: its SHA-256 is not the manifest's"]
    names = [measure.name for measure in report.measures]
    assert ("share of documents that repeat another exactly" in names) == (split != "train")
    assert "documents both in train and validation" not in names
    assert "share of bytes that are not UTF-8" in names


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_missing_file_of_the_tokenizer(copy, name, version):
    if version == 1:
        as_version_1(copy)
    (copy / "tokenizer" / name).unlink()
    report = check(copy, workers=1)
    assert not report.is_healthy
    assert any(f"tokenizer/{name} is missing" in problem for problem in report.problems)


def test_a_tokenizer_that_cannot_be_read(copy, capsys, tmp_path):
    """What the examples are is not known then; the files are still compared."""
    for name in ("vocab.txt", "tokenizer.json"):
        (copy / "tokenizer" / name).unlink()
    page = tmp_path / "page.html"
    flags = ["--workers=1", "--examples=2", f"--report={page}"]
    assert check_module.main([str(copy), *flags]) == 1
    out = capsys.readouterr().out
    assert "FAIL tokenizer/vocab.txt is missing" in out
    assert "FAIL tokenizer/ is unusable, so no example was read" in out
    assert page.exists()


def as_version_1(data_dir):
    """As it was built before there were checksums of the manifest and of tokenizer/."""
    path = data_dir / "dataset.json"
    fields = json.loads(path.read_text())
    del fields["checksum"]
    fields["format_version"] = 1
    statistics = fields["statistics"]
    for name in [name for name in statistics["files"] if name.startswith("tokenizer/")]:
        del statistics["files"][name]
    for name in ("characters", "stripped_characters", "unparted_files", "unparted_lines"):
        del statistics[name]
    del statistics["cut_documents"], fields["arguments"]["document_per_line"]
    for split, shards in fields["splits"].items():
        for shard in shards:
            del shard["num_bytes"]
        del statistics["splits"][split]["document_lengths"]
        del statistics["splits"][split]["long_words"]
    path.write_text(json.dumps(fields, indent=1))


def test_data_sets_of_version_1(copy):
    as_version_1(copy)
    assert check(copy, workers=1).is_healthy
    Manifest.read(copy).verify_quickly(copy, ("train",))
    options = BuildOptions(**{**Manifest.read(copy).arguments, "input": ("x",)})
    assert options.document_per_line is False


def test_not_a_data_set(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "missing")
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        check(tmp_path)


def save_hashes(data_dir, split, hashes):
    """As a build of such documents would have."""
    manifest = Manifest.read(data_dir)
    name = f"document_hashes-{split}.npy"
    manifest.statistics["files"][name] = writers.save_array(epath.Path(data_dir / name), hashes)
    manifest.write(data_dir)


def test_duplicates_and_shared_documents(copy):
    hashes = np.load(copy / "document_hashes-train.npy")
    hashes[:30] = hashes[30]
    save_hashes(copy, "train", hashes)
    save_hashes(copy, "validation", hashes[29:31])
    assert failing(check(copy, workers=1)) == {
        "share of documents that repeat another exactly",
        "documents both in train and validation",
    }


def test_unsuitable_text(tmp_path, tokenizer_dir):
    """Greek, one sentence a document: [UNK] and no IsNext."""
    rows = [f"αλφα βητα {text.partition('.')[0]} ωμεγα." for text in make_documents(300)]
    source = write_jsonl(tmp_path / "c.jsonl", rows)
    build(BuildOptions((source,), tokenizer_dir), tmp_path / "data", workers=1)
    page = tmp_path / "report.html"
    check_module.main([str(tmp_path / "data"), "--workers=1", f"--report={page}"])
    found = failing(check(tmp_path / "data", workers=1))
    assert {"[UNK] rate", "share of IsNext pairs"} <= found
    unknown = Manifest.read(tmp_path / "data").statistics["unknown_words"]
    assert unknown == {"αλφα": 300, "βητα": 300, "ωμεγα": 300}
    assert "<li><code>αλφα</code> 300" in page.read_text()


def _corrupt(examples, manifest, tokenizer, kind):
    if kind == "no [CLS]":
        examples["input_ids"][0, 0] = 50
    elif kind == "no [SEP] after A":
        examples["input_ids"][0, examples["second_start"][0] - 1] = 50
    elif kind == "tokens in the padding":
        short = np.flatnonzero(examples["num_tokens"] < 128)[0]
        examples["input_ids"][short, -1] = 50
    elif kind == "id past the vocabulary":
        examples["input_ids"][0, 1] = tokenizer.vocab_size
    elif kind == "positions not ascending":
        m = examples["num_masked"][0]
        examples["masked_lm_positions"][0, :m] = examples["masked_lm_positions"][0, :m][::-1]
    elif kind == "position in the padding":
        short = np.flatnonzero(examples["num_tokens"] < 128)[0]
        examples["masked_lm_positions"][short, examples["num_masked"][short] - 1] = 127


@pytest.mark.parametrize(
    "kind",
    [
        "no [CLS]",
        "no [SEP] after A",
        "tokens in the padding",
        "id past the vocabulary",
        "positions not ascending",
        "position in the padding",
    ],
)
def test_malformed_examples_are_counted(data_dir, tokenizer, kind):
    manifest = Manifest.read(data_dir)
    [examples] = read_examples(data_dir / manifest.splits["train"][0].name, manifest.dtype)
    examples = examples.copy()
    assert tally_examples(examples, manifest, tokenizer).malformed == 0
    _corrupt(examples, manifest, tokenizer, kind)
    assert tally_examples(examples, manifest, tokenizer).malformed == 1


def test_special_tokens_in_masks_are_counted(data_dir, tokenizer):
    manifest = Manifest.read(data_dir)
    [examples] = read_examples(data_dir / manifest.splits["train"][0].name, manifest.dtype)
    examples = examples.copy()
    examples["masked_lm_ids"][0, 0] = tokenizer.start_id
    examples["input_ids"][0, examples["masked_lm_positions"][0, 0]] = tokenizer.separator_id
    tally = tally_examples(examples, manifest, tokenizer)
    assert (tally.special_masked, tally.special_drawn) == (1, 1)


def test_a_mask_in_dynamic_data_is_malformed(tmp_path, corpus_file, tokenizer_dir, tokenizer):
    options = BuildOptions((corpus_file,), tokenizer_dir, masking="dynamic", dupe_factor=1)
    manifest = build(options, tmp_path / "data", workers=1)
    assert check(tmp_path / "data", workers=1).is_healthy
    path = tmp_path / "data" / manifest.splits["train"][0].name
    examples = next(read_examples(path, manifest.dtype)).copy()
    examples["input_ids"][0, 1] = tokenizer.mask_id
    assert tally_examples(examples, manifest, tokenizer).malformed == 1


def test_wrong_rates_are_found(copy):
    """The manifest says 50 % [MASK]; the examples have 80 %."""
    manifest = Manifest.read(copy)
    arguments = {**manifest.arguments, "mask_fraction": 0.5, "masked_lm_prob": 0.3}
    dataclasses.replace(manifest, arguments=arguments).write(copy)
    assert failing(check(copy, workers=1)) == {
        "masked tokens replaced by [MASK]",
        "masked / intended by the rate and the cap",
    }


def mask_rate(report):
    [measure] = [m for m in report.measures if m.split == "train" and "mask rate" in m.name]
    return measure


def test_a_cap_below_the_rate_is_said(tmp_path, corpus_file, tokenizer_dir, capsys):
    options = BuildOptions((corpus_file,), tokenizer_dir, num_shards=3, dupe_factor=1)
    options = dataclasses.replace(options, masked_lm_prob=0.3)
    build(options, tmp_path / "free", workers=1)
    free = mask_rate(check(tmp_path / "free", workers=1))
    assert 0.2 < free.low < free.value and free.value == pytest.approx(0.3, abs=0.01)
    assert not free.remark
    options = dataclasses.replace(options, max_predictions_per_seq=20)
    build(options, tmp_path / "capped", workers=1)
    page = tmp_path / "report.html"
    assert check_module.main([str(tmp_path / "capped"), "--workers=1", f"--report={page}"]) == 0
    said = "the cap of 20 predictions per example keeps it far below --masked_lm_prob=0.3"
    assert said in capsys.readouterr().out and said in page.read_text()


def test_a_low_rate_that_no_cap_explains(tmp_path, corpus_file, tokenizer_dir):
    options = BuildOptions((corpus_file,), tokenizer_dir, masked_lm_prob=0.05, dupe_factor=1)
    options = dataclasses.replace(options, max_predictions_per_seq=20)
    manifest = build(options, tmp_path / "data", workers=1)
    arguments = {**manifest.arguments, "masked_lm_prob": 0.15}
    dataclasses.replace(manifest, arguments=arguments).write(tmp_path / "data")
    assert not mask_rate(check(tmp_path / "data", workers=1)).is_healthy


def test_a_stray_byte_is_healthy(tmp_path, tokenizer_dir):
    (tmp_path / "a.txt").write_bytes(b"Bako duna. Basto fe.\n\n" * 20 + b"\xe9")
    options = BuildOptions((str(tmp_path / "a.txt"),), tokenizer_dir, objective="full_sentences")
    build(options, tmp_path / "data", workers=1)
    [measure] = [m for m in check(tmp_path / "data", workers=1).measures if "not UTF-8" in m.name]
    assert measure.value > options.max_decode_errors and measure.is_healthy


def failures(report):
    return {m.name: m.value for m in report.measures if not m.is_healthy}


def remarks(report):
    return {m.name for m in report.measures if m.remark}


def write_lines(path, number):
    texts = [" ".join(document.split("\n")) for document in make_documents(number)]
    path.write_text("\n".join(texts) + "\n")
    return str(path)


def test_text_that_nothing_parts_into_documents(tmp_path, tokenizer_dir, caplog):
    """Three lists of documents, each read as one."""
    sources = tuple(write_lines(tmp_path / f"{name}.txt", 200) for name in "abc")
    options = BuildOptions(sources, tokenizer_dir, dupe_factor=1, validation_fraction=0)
    build(options, tmp_path / "data", workers=1)
    said = "3 text files have no blank line, so that each is one document, of 200 lines on average"
    assert said in caplog.text and "--document_per_line" in caplog.text
    name = "text files without a blank line, each one document"
    assert failures(check(tmp_path / "data", workers=1))[name] == 3
    with pytest.raises(UserError, match=r"200 lines without a blank.*--document_per_line"):
        build(dataclasses.replace(options, input=sources[:1]), tmp_path / "one", workers=1)
    options = dataclasses.replace(options, document_per_line=True)
    manifest = build(options, tmp_path / "lines", workers=1)
    assert manifest.statistics["splits"]["train"]["documents"] == 600
    assert name not in failures(check(tmp_path / "lines", workers=1))


def test_files_of_a_document_each_are_remarked(tmp_path, tokenizer_dir):
    """A hundred books without blank lines look like lists of documents, but may be as they are."""
    for i in range(101):
        write_lines(tmp_path / f"{i}.txt", 10)
    options = BuildOptions((f"{tmp_path}/*.txt",), tokenizer_dir, dupe_factor=1)
    build(options, tmp_path / "data", workers=1)
    report = check(tmp_path / "data", workers=1)
    name = "text files without a blank line, each one document"
    assert name in remarks(report) and name not in failures(report)


def test_stripped_marks_are_measured(tmp_path, tokenizer_dir):
    """Japanese voicing and Hindi vowel signs, which lowercasing strips as if they were accents."""
    name = "share of characters that lose a mark"
    source = write_jsonl(
        tmp_path / "a.jsonl", ["ガラスの窓から光が入る。", "カラスが屋根に。"] * 20
    )
    options = BuildOptions((source,), tokenizer_dir, objective="full_sentences")
    build(options, tmp_path / "data", workers=1)
    assert failures(check(tmp_path / "data", workers=1))[name] == pytest.approx(3 / 20)
    source = write_jsonl(tmp_path / "b.jsonl", [*make_documents(100), "déjà vu été"] * 3)
    build(dataclasses.replace(options, input=(source,)), tmp_path / "latin", workers=1)
    report = check(tmp_path / "latin", workers=1)
    assert name not in failures(report) | dict.fromkeys(remarks(report))


def test_long_words_are_counted_apart(tmp_path, tokenizer_dir):
    """Not the letters' fault: they are all there."""
    texts = [f"Bako {'acgt' * 40} duna {i}." for i in range(60)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    options = BuildOptions((source,), tokenizer_dir, objective="full_sentences")
    build(options, tmp_path / "data", workers=1)
    unknown = Manifest.read(tmp_path / "data").statistics["unknown_words"]
    assert unknown == {"acgt" * 10 + "…": 60}
    found = failures(check(tmp_path / "data", workers=1))
    assert "share of words too long for the tokenizer" in found and "[UNK] rate" not in found


def test_lengths_of_documents(tmp_path, tokenizer_dir):
    texts = ["a" + " b" * (n - 1) for n in (1, 3, 3, 5, 6, 7, 60)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    options = BuildOptions((source,), tokenizer_dir, objective="full_sentences", dupe_factor=1)
    options = dataclasses.replace(options, validation_fraction=0)
    manifest = build(options, tmp_path / "data", workers=1)
    assert manifest.statistics["splits"]["train"]["document_lengths"] == [1, 2, 3, 0, 0, 1]
    [median] = [m for m in check(tmp_path / "data", workers=1).measures if "median" in m.name]
    assert 4 < median.value < 8


def test_format_example(data_dir, tokenizer):
    manifest = Manifest.read(data_dir)
    example = np.zeros((), manifest.dtype)
    words = ["[CLS]", "[MASK]", "a", "[SEP]", "b", "[SEP]"]
    example["input_ids"][:6] = [tokenizer.ids[w] for w in words]
    example["num_tokens"], example["second_start"], example["num_masked"] = 6, 4, 1
    example["masked_lm_positions"][0], example["masked_lm_ids"][0] = 1, tokenizer.ids["c"]
    text = format_example(example, manifest, tokenizer)
    assert text == "[CLS] [MASK]->c a [SEP] b [SEP]   (IsNext, 6 tokens)"


def test_command(data_dir, tmp_path, capsys):
    page = tmp_path / "report.html"
    arguments = [str(data_dir), "--workers=1", "--examples=2", f"--report={page}"]
    assert check_module.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("[MASK]->") > 10 and "\nhealthy\n" in out
    text = page.read_text()
    assert "train: examples by length" in text and text.count("<svg") == 6
    assert "train: documents by length" in text and text.count("<li><code>") == 60
    # On a narrow screen pictures and tables shrink or scroll, and colours follow the system's.
    assert "name='viewport'" in text and "prefers-color-scheme: dark" in text
    bars = re.findall(r"<title>\S+ tokens per example: ([\d,]+)</title>", text)
    manifest = Manifest.read(data_dir)
    counts = [manifest.num_examples(split) for split in manifest.splits]
    assert sum(int(count.replace(",", "")) for count in bars) == sum(counts)
    # No network: nothing is loaded from elsewhere.
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    with pytest.raises(SystemExit):  # argparse says why
        check_module.main([str(data_dir), "--workers=0"])
    with pytest.raises(UserError, match="--json prints no examples"):
        check_module.main([str(data_dir), "--json", "--examples=3"])
    assert check_module.main([str(data_dir), "--workers=1", "--json"]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["healthy"] and all(m["healthy"] for m in parsed["measures"])
