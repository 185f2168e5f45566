"""Examples as text: on a terminal, and in the page."""

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
from etils import epath

from bert_jax.data import tokenizer as tokenizers
from bert_jax.data.records import TOKENIZER, Manifest
from bert_jax.data.tokenizer import Tokenizer
from data_prep.checking.tally import read_examples

# How a part of an example is shown: on a terminal, and in the page.
TERMINAL = {
    "seen": "\033[31m{}\033[0m",
    "true": "\033[32m{}\033[0m",
    "special": "\033[2m{}\033[0m",
}
PLAIN = dict.fromkeys(TERMINAL, "{}")
HTML = {kind: f"<span class='{kind}'>{{}}</span>" for kind in TERMINAL}


def format_example(
    example: np.void,
    manifest: Manifest,
    tokenizer: Tokenizer,
    styles: Mapping[str, str] = PLAIN,
    escape: Callable[[str], str] = str,
) -> str:
    """One example as text; a prediction reads 'what the model sees->what it should say'.

    '[CLS] the [MASK]->man went [SEP] he bought milk [SEP]   (IsNext, 9 tokens)'
    """
    n = int(example["num_tokens"])
    words = [escape(tokenizer.vocab[i]) for i in example["input_ids"][:n]]
    if manifest.is_static:
        m = int(example["num_masked"])
        for position, original in zip(
            example["masked_lm_positions"][:m], example["masked_lm_ids"][:m], strict=True
        ):
            seen, true = words[position], escape(tokenizer.vocab[original])
            words[position] = styles["seen"].format(seen) + "->" + styles["true"].format(true)
    around = tokenizer.layout.tokens
    words = [styles["special"].format(w) if w in around else w for w in words]
    names = {"nsp": ("IsNext, ", "random, "), "sop": ("in order, ", "swapped, ")}
    of_objective = names.get(manifest.arguments["objective"])
    label = of_objective[example["next_sentence_label"]] if of_objective else ""
    return f"{' '.join(words)}   ({label}{n} tokens)"


def first_examples(
    data_dir: str,
    corrupted: Collection[str],
    count: int,
    styles: Mapping[str, str],
    escape: Callable[[str], str] = str,
) -> Iterator[str]:
    """The first `count` training examples, those of corrupted shards skipped."""
    if TOKENIZER in corrupted:
        return
    manifest = Manifest.read(data_dir)
    tokenizer = tokenizers.load(epath.Path(data_dir) / TOKENIZER)
    for shard in manifest.splits["train"]:
        if shard.name in corrupted:
            continue
        for examples in read_examples(epath.Path(data_dir) / shard.name, manifest.dtype):
            for example in examples[:count]:
                yield format_example(example, manifest, tokenizer, styles, escape)
            count -= len(examples)
            if count <= 0:
                return
