#!/usr/bin/env bash
# transformers: BertTokenizer does not follow max_input_chars_per_word of its tokenizer.json.
#
# Expected: the ids of the tokenizer that the file describes, as of `tokenizers` itself and of
# PreTrainedTokenizerFast on the same directory.
# Seen with transformers 5.24.0 on Python 3.11: a word of 150 letters is [UNK], where the file says
# 300: the class rebuilds the model from the vocabulary, with a limit of 100.
# Here: a tokenizer with another limit is saved as PreTrainedTokenizerFast.
set -euo pipefail
directory=$(mktemp -d); trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'tokenizers==0.23.3'
cd "$directory"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
import pathlib
import sys

import tokenizers
import transformers

specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
vocabulary = {token: i for i, token in enumerate([*specials, "a", "##a"])}
model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=300)
tokenizer = tokenizers.Tokenizer(model)
tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
seen = {"tokenizers": len(tokenizer.encode("a" * 150).ids)}
for name in ("PreTrainedTokenizerFast", "BertTokenizer"):
    directory = pathlib.Path(name)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": name, "unk_token": "[UNK]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = transformers.AutoTokenizer.from_pretrained(name)
    seen[name] = len(loaded.tokenize("a" * 150))
print("transformers", transformers.__version__, "on Python", sys.version.split()[0])
print("pieces of a word of 150 letters, limit 300: expected 150 of each; seen", seen)
sys.exit(seen != {"tokenizers": 150, "PreTrainedTokenizerFast": 150, "BertTokenizer": 1})
PYTHON
