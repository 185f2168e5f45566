#!/usr/bin/env bash
# transformers 5: a special token of added_tokens.json is found in lowercased text too.
#
# Expected: a token that special_tokens_map.json lists under additional_special_tokens is special,
# as it was in transformers 4: looked for before lowercasing, so that "[drug]" is no "[DRUG]".
# Seen with transformers 5.24.0: it is an ordinary added token (special=False, normalized=True), so
# "[drug]" written by a user becomes the mark. extra_special_tokens in tokenizer_config.json is right.
# Here: bert_jax.data.tokenizer_files reads such directories as transformers 5 does, and a test holds
# the ids equal.
set -euo pipefail
directory=$(mktemp -d); trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0'
cd "$directory"
mkdir tokenizer
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' the '[' ']' drug > tokenizer/vocab.txt
echo '{"[DRUG]": 9}' > tokenizer/added_tokens.json
echo '{"additional_special_tokens": ["[DRUG]"]}' > tokenizer/special_tokens_map.json
echo '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}' > tokenizer/tokenizer_config.json
venv/bin/python - <<'PYTHON' 2>/dev/null
import sys

import transformers

tokenizer = transformers.BertTokenizer.from_pretrained("tokenizer")
token = tokenizer.added_tokens_decoder[9]
seen = tokenizer("the [drug]", add_special_tokens=False)["input_ids"]
print("transformers", transformers.__version__, "on Python", sys.version.split()[0])
print("expected special=True and [5, 6, 8, 7]; seen", f"special={token.special}", seen)
sys.exit(seen != [5, 9] or token.special)
PYTHON
