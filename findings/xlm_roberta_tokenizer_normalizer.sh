#!/usr/bin/env bash
# transformers: XLMRobertaTokenizer does not normalise as its tokenizer.json says.
#
# Expected: the ids of the tokenizer that the file describes, as of `tokenizers` itself and of
# PreTrainedTokenizerFast on the same directory.
# Seen with transformers 5.24.0 on Python 3.11: with an NFKC normalizer in the file, "ﬁne" (with the
# ligature) is <unk>: the class rebuilds the tokenizer and keeps SentencePiece's table alone (a
# normalizer of type Precompiled). CamembertTokenizer does the same.
# Here: both are built and compared; where ids differ the directory is refused with the text, and
# PreTrainedTokenizerFast is what we write.
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

special = ["<s>", "<pad>", "</s>", "<unk>"]
vocab = [*((token, 0.0) for token in special), ("▁fine", -1.0), ("▁", -2.0), ("<mask>", 0.0)]
tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, 3, False))
tokenizer.normalizer = tokenizers.normalizers.NFKC()
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
seen = {"tokenizers": tokenizer.encode("ﬁne").tokens}
for name in ("PreTrainedTokenizerFast", "XLMRobertaTokenizer"):
    directory = pathlib.Path(name)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    loaded = transformers.AutoTokenizer.from_pretrained(name)
    ids = loaded("ﬁne", add_special_tokens=False)["input_ids"]
    seen[name] = loaded.convert_ids_to_tokens(ids)
print("transformers", transformers.__version__, "on Python", sys.version.split()[0])
print("pieces of a word with a ligature: expected ['▁fine'] of each; seen", seen)
same = ["▁fine"]
changed = seen["XLMRobertaTokenizer"] == same or seen["PreTrainedTokenizerFast"] != same
sys.exit(changed)
PYTHON
