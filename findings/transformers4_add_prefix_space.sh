#!/usr/bin/env bash
# transformers 4: PreTrainedTokenizerFast turns add_prefix_space of its tokenizer.json off.
#
# Expected: the ids of the tokenizer that the file describes: "the" has the blank of " the" before
# it, since its ByteLevel pre-tokenizer has add_prefix_space true.
# Seen with transformers 4.57.6 on Python 3.11: the first word has none, as tokenizer_config.json
# does not repeat the field and a missing field counts as false. transformers 5.24.0 follows
# tokenizer.json, so that the same directory gives other ids in the two.
# Here: add_prefix_space is written into tokenizer_config.json too.
set -euo pipefail
directory=$(mktemp -d); trap 'rm -rf "$directory"' EXIT
for version in 4.57.6 5.24.0; do
  python3 -m venv "$directory/$version"
  "$directory/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
cd "$directory"
cat > run.py <<'PYTHON'
import json
import pathlib

import tokenizers
import transformers

letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
vocabulary = {token: i for i, token in enumerate(["<unk>", *sorted(letters)])}
tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
directory = pathlib.Path(transformers.__version__)
(directory / "saved").mkdir()
tokenizer.save(str(directory / "saved" / "tokenizer.json"))
config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
(directory / "saved" / "tokenizer_config.json").write_text(json.dumps(config))
loaded = transformers.AutoTokenizer.from_pretrained(str(directory / "saved"))
print(len(loaded("the", add_special_tokens=False)["input_ids"]))
PYTHON
export HF_HUB_OFFLINE=1
old=$(4.57.6/bin/python run.py 2>/dev/null); new=$(5.24.0/bin/python run.py 2>/dev/null)
echo "ids of 'the' with a prefix space: expected 4 of each; seen $old (4.57.6), $new (5.24.0)"
[ "$old" = 3 ] && [ "$new" = 4 ]
