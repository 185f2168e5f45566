"""Small BPE and Unigram tokenizers as other libraries write them."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    "The river flows to the sea, and the rivers' mouths are wide.",
    "It's the sun's light: 3.5% of 27,360 in 2023 — “warm”, they say!",
    "Crème brûlée, naïve café; Über Straße, Ελλάδα, Йод, 北京 is 東京.",
)
# Where words may depend on one another, or special tokens be mistaken.
ODD_TEXTS = (
    *TEXTS,
    "",
    "a",
    " the river ",
    "the  river   \t x\u00a0y \u2028z\u3000 \u0085 w",
    "can't they'll 'sun 'S \"'tis'' ``x'' x'—'s …'re '—' 'é's",
    "\u0301x a\u0301\u0323 e\u0301 \u200b the\u200b river\ufeff \u00ad- \u0600 1\ufe0f\u20e3",
    "▁ ▁the x▁y ▁▁ _ ﬁne ½ x² Ⅳ ㈱ ｆｕｌｌ ﷺ ﷽ ＼",
    "\u1112\u1161\u11ab 한글 हिन्दी ไทย ガギグ ｶﾞ 👩‍👩‍👧 🏽 A\u030a",
    "<s> </s> <mask>the <pad> x<mask>y <unk> [MASK] [CLS]",
    "x" * 300,
)


def byte_level(directory: pathlib.Path, name: str = "RobertaTokenizer", **config) -> pathlib.Path:
    """A BPE of bytes as RoBERTa's, in the form that `save_pretrained` writes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, normalized=False)])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _write(directory, backend, {"tokenizer_class": name, **_ROBERTA, **config})


def unigram(
    directory: pathlib.Path, name: str = "PreTrainedTokenizerFast", **config
) -> pathlib.Path:
    """A Unigram as XLM-R's, ALBERT's or XLNet's, by the names of transformers' classes."""
    albert, xlnet = name == "AlbertTokenizer", name == "XLNetTokenizer"
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    if albert:
        first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    elif xlnet:
        first = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    letters = sorted({x for text in TEXTS for x in text if x != " "})
    words = sorted({f"▁{x}" for text in TEXTS for x in text.split()})
    if albert:
        words = sorted({x.lower() for x in words})
    pieces = [(x, -5.0 - i / 64) for i, x in enumerate(["▁", *words, "▁th", "er", "ing", "un"])]
    pieces += [(x, -12.0 - i / 64) for i, x in enumerate(letters)]
    vocab = [*((x, 0.0) for x in first), *pieces]
    vocab += [] if albert or xlnet else [("<mask>", 0.0)]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, first.index("<unk>"), False))
    steps = [normalizers.NFKC()]
    if albert or xlnet:
        steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
        steps += [normalizers.Lowercase()] if albert else []
        steps += [normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    if albert:
        single, pair = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    elif xlnet:
        single, pair = "$A:0 <sep>:0 <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2"
    ids = backend.get_vocab()
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(x, ids[x]) for x in first if x in pair]
    )
    named = {} if albert or xlnet else _ROBERTA
    return _write(directory, backend, {"tokenizer_class": name, **named, **config})


_ROBERTA = {
    **{"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    **{"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"},
}


def _write(directory, backend, config) -> pathlib.Path:
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
