"""What quickstart does between the commands, which have tests of their own."""

import sys

from small_models import random_model

import bert_jax
from bert_jax import quickstart
from bert_jax.data import tokenizer

TEXTS = [
    "Can be overridden by ensure_multiple_of in the preprocess method of it.",
    "Nothing here is in the ensure_multiple_of vocabulary of that small model.",
    "This is overridden by (a), (b), (c), (d) and more of it, which are tokens.",
]


def test_guesses_mask_whole_words_and_tell_their_rank(tmp_path):
    words = ("multiple", "overridden", "of", "##s")
    vocabulary = tokenizer.WordPieceTokenizer((*tokenizer.SPECIAL_TOKENS, *words))
    workdir, _ = random_model(tmp_path, "pretraining", [], tokenizer=vocabulary)
    model = bert_jax.load(workdir, max_seq_length=18)
    text = TEXTS[0].replace("overridden", "[MASK]")
    best = [x["token"] for x in model.fill_mask([text], top_k=9)[0]["masks"][0]]
    lines = list(quickstart.guesses(model, [{"text": text} for text in TEXTS]))
    rank = best.index("overridden") + 1
    mark = "right" if rank == 1 else f"its rank of 9: {rank}"
    assert lines[0] == f"    {text}"
    assert lines[1].startswith(f"      was overridden ({mark}); guesses: {best[0]} ")
    share = f"{rank <= 5:.0%}"
    assert lines[2].endswith(
        f"Of 1 masked words the model's first guess was right for {rank == 1:.0%};\n"
        "    the word was "
        f"within the first 5 {share}, within the first 20 100%."
    )


def test_the_table_fits_a_terminal_of_80_columns():
    long = "/a/path/of/some/length" * 4
    text = quickstart.table([("corpus", "words " * 40 + long), ("which package?", "one")])
    lines = text.splitlines()
    assert long in text  # whole, to be copied
    assert all(len(line) <= 80 for line in lines if long not in line and not line.startswith("--"))
    assert lines[1].startswith("corpus         | words") and lines[-2] == "which package? | one"


def test_the_environment_is_named_where_it_is_not_active(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert quickstart._activation() == ""  # no environment of its own
    script = tmp_path / ".venv" / "bin" / "activate"
    script.parent.mkdir(parents=True)
    script.touch()
    assert quickstart._activation() == "  . .venv/bin/activate\n"
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert quickstart._activation() == ""
