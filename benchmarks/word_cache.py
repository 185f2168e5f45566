"""Compares the word caches of all kinds of tokenizers with the Rust tokenizer: ids, and speed.

    python benchmarks/word_cache.py --input='wiki/*.jsonl.gz' --build=wiki/0.jsonl.gz DIR_OR_GGUF…

Prints a row per tokenizer, all in one run: whether every id is equal, and MB/s of processor time
on one thread, of the cache and of the Rust tokenizer. A .gguf file of llama.cpp's vocabularies
(package gguf) becomes a tokenizer.json with RoBERTa's or ModernBERT's special tokens beside its
own: GPT-2's and GPT-NeoX's byte-level BPE, and XLM-R's Unigram (nomic-bert-moe). With transformers
installed the first lines are compared with what it reads, too. With --build the last column is the
speed of data_prep.build as a whole on that file, in one process.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Python puts a script's own directory first, where data_prep.py hides the package of its name.
if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import numpy as np
import tokenizers as rust
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.data import tokenizer as tokenizer_lib
from data_prep import build
from data_prep.examples.encoders import make_encoder
from data_prep.options import BuildOptions
from data_prep.sources import corpus, parsing
from data_prep.sources.documents import sentences

_COMPARED_WITH_TRANSFORMERS = 2000


def from_gguf(file: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes a .gguf file's vocabulary as a Hugging Face directory."""
    import gguf

    fields = gguf.GGUFReader(file).fields

    def field(name: str) -> Any:
        key = f"tokenizer.ggml.{name}"
        return fields[key].contents() if key in fields else None

    tokens, kinds = field("tokens"), field("token_type")
    merges = field("merges")
    if merges is None:
        names = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
        vocab = [*zip(tokens, map(float, field("scores")), strict=True)]
        vocab = [*vocab[:250001], ("<mask>", 0.0)]  # then come rows without a token
        backend = rust.Tokenizer(models.Unigram(vocab, 3, byte_fallback=False))
        backend.normalizer = normalizers.Precompiled(bytes(field("precompiled_charsmap")))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        backend.decoder = decoders.Metaspace()
    else:
        is_neox = "neox" in file.name
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        if not is_neox:
            names = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
        pairs = [tuple(pair.split(" ")) for pair in merges]
        # From the first of type 4 (user-defined) on they are added: GPT-NeoX's runs of blanks.
        size = kinds.index(4) if 4 in kinds else len(tokens)
        own = {token: i for i, token in enumerate(tokens[:size])}
        backend = rust.Tokenizer(models.BPE(own, pairs))
        backend.normalizer = normalizers.NFC() if is_neox else None
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if is_neox:
            blanks = [rust.AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)]
            backend.add_tokens(blanks)
    pad, unknown, start, separator, mask = names
    backend.add_special_tokens([pad, unknown, start, separator])
    backend.add_special_tokens([rust.AddedToken(mask, lstrip=True, normalized=False)])
    ids = backend.get_vocab()
    backend.post_processor = processors.RobertaProcessing(
        (separator, ids[separator]), (start, ids[start])
    )
    backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": start, "mask_token": mask}
    config |= {"sep_token": separator, "pad_token": pad, "unk_token": unknown}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def read_lines(pattern: str, count: int) -> list[str]:
    """Sentences, as they are encoded when a data set is built."""
    found: list[str] = []
    for part in corpus.list_parts([pattern]):
        for unit in corpus.read_units(part):
            for document in parsing.parse_unit(unit)[0]:
                found += sentences(document)
            if len(found) >= count:
                return found[:count]
    return found


def build_speed(directory: pathlib.Path, source: str) -> str:
    """MB/s of a data set's text, processor time of one process."""
    with tempfile.TemporaryDirectory() as output:
        options = BuildOptions((source,), str(directory), objective="full_sentences", dupe_factor=1)
        start = time.process_time()
        manifest = build.run(options, output, workers=1)
        seconds = time.process_time() - start
    return f"{manifest.statistics['source_bytes'] / 1e6 / seconds:.1f}"


def compare(directory: pathlib.Path, texts: list[str], source: str) -> str:
    """A row of the table."""
    tokenizer = tokenizer_lib.load(directory)
    encoder = make_encoder(tokenizer)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    lines = [*encoder.of_document(texts)]
    start = time.process_time()
    chunks = [encoder.encode(lines[i : i + 5000]) for i in range(0, len(lines), 5000)]
    cache = time.process_time() - start
    backend = tokenizer.text_backend
    start = time.process_time()
    expected = backend.encode_batch_fast(lines, add_special_tokens=False)
    alone = time.process_time() - start
    ids = np.concatenate([chunk.ids for chunk in chunks])
    lengths = np.concatenate([chunk.length_S for chunk in chunks])
    equal = lengths.tolist() == [len(e.ids) for e in expected]
    equal = equal and ids.tolist() == [i for e in expected for i in e.ids]
    theirs = _with_transformers(directory, tokenizer, texts)
    return (
        f"| {tokenizer.kind} | {tokenizer.vocab_size:,} | {len(lines):,} | {len(ids):,} | "
        f"{'equal' if equal else 'DIFFERENT'} | {theirs} | "
        f"{megabytes / cache:.1f} | {megabytes / alone:.1f} | {alone / cache:.1f} | "
        f"{build_speed(directory, source) if source else '-'} |"
    )


def _with_transformers(
    directory: pathlib.Path, tokenizer: tokenizer_lib.Tokenizer, texts: list[str]
) -> str:
    try:
        import transformers
    except ImportError:
        return "-"
    if not directory.is_dir():
        return "-"
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    texts = texts[:_COMPARED_WITH_TRANSFORMERS]
    ids = theirs(texts, add_special_tokens=False)["input_ids"]
    equal = ids == [tokenizer.encode(text) for text in texts]
    return "equal" if equal else "DIFFERENT"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--input", required=True)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--build", default="", help="a file to build a data set of")
    parser.add_argument("tokenizers", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    texts = read_lines(options.input, options.lines)
    columns = ["kind", "tokens", "lines", "ids", "cache / Rust", "transformers"]
    columns += ["MB/s", "Rust MB/s", "ratio", "build MB/s"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for path in options.tokenizers:
        with tempfile.TemporaryDirectory() as scratch:
            directory = path
            if path.suffix == ".gguf":
                directory = pathlib.Path(scratch)
                from_gguf(path, directory)
            print(compare(directory, texts, options.build), flush=True)


if __name__ == "__main__":
    main()
