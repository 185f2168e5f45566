#!/usr/bin/env bash
# datasets: a text column of a JSON file whose values look like dates comes back as other text,
# also where the caller says that the column is text.
#
# Expected: with features={"text": Value("string")} the strings of the file.
# Seen with datasets 5.2.0 on Python 3.11: "2020-01-01" becomes "2020-01-01 00:00:00", and without
# features a timestamp: PyArrow guesses the type first, and the result is cast to text.
# Here: data_prep reads the files of hf:DIRECTORY itself, and refuses a column that is no text.
set -euo pipefail
directory=$(mktemp -d); trap 'rm -rf "$directory"' EXIT
python3 -m venv "$directory/venv"
"$directory/venv/bin/pip" install --quiet --disable-pip-version-check 'datasets==5.2.0'
cd "$directory"
mkdir data
printf '{"text": "2020-01-01"}\n{"text": "2021-02-03"}\n' > data/train.jsonl
HF_HOME="$directory/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys

import datasets

text = datasets.Features({"text": datasets.Value("string")})
seen = {
    how: [row["text"] for row in datasets.load_dataset("data", split="train", **arguments)]
    for how, arguments in {
        "features=string": {"features": text},
        "features=string, streamed": {"features": text, "streaming": True},
        "no features": {},
    }.items()
}
print("datasets", datasets.__version__, "on Python", sys.version.split()[0])
print("expected ['2020-01-01', '2021-02-03']; seen", seen)
changed = ["2020-01-01 00:00:00", "2021-02-03 00:00:00"]
sys.exit(seen["features=string"] != changed or seen["features=string, streamed"] != changed)
PYTHON
