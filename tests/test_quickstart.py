"""What quickstart does between the commands, which have tests of their own."""

import sys
import types

from bert_jax import quickstart


class Guesser:
    """Stands in for the fill-mask pipeline; keeps what it is asked, and knows every word."""

    def __init__(self):
        self.asked = []
        self.tokenizer = self
        self.mask_token = "[MASK]"

    def get_vocab(self):
        return {"multiple": 0, "overridden": 1}

    def __call__(self, text, top_k):
        assert self.mask_token in text  # the pipeline raises an error otherwise
        self.asked.append(text)
        return [{"token_str": "word", "score": 0.5}] * top_k


def test_guesses_mask_whole_words(monkeypatch, tmp_path):
    guesser = Guesser()
    fake = types.SimpleNamespace(
        pipeline=lambda *args, **kwargs: guesser,
        logging=types.SimpleNamespace(set_verbosity_error=lambda: None),
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    texts = [
        "Can be overridden by ensure_multiple_of in the preprocess method of it.",
        "Nothing here is in the ensure_multiple_of vocabulary of that small model.",
    ]
    lines = quickstart.guesses(tmp_path, [{"text": text} for text in texts])
    assert guesser.asked == [texts[0].replace("overridden", "[MASK]")]
    assert lines == [
        f"    {guesser.asked[0]}\n      was overridden; guesses: word 50%, word 50%, word 50%"
    ]


def test_guesses_without_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'bert_jax[hf]'" in quickstart.guesses(tmp_path, [])[0]


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
