"""The round trip of a real model, all-MiniLM-L6-v2, where BERT_JAX_MINILM names its directory.

    BERT_JAX_MINILM=all-MiniLM-L6-v2 python -m pytest -m slow tests/test_real_model.py

It is the model of https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (6 layers of 384).
"""

import os

import numpy as np
import pytest
import transformers

from bert_jax import convert, loading, predict
from bert_jax.huggingface import keys, parity
from bert_jax.models import architectures

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file

SOURCE = os.environ.get("BERT_JAX_MINILM", "")
TEXTS = (
    "The capital of France is Paris.",
    "Crème brûlée, naïve façade; E=mc² — 北京 is 3,000 years old!",
    "A man is eating food.",
    "short",
    " ".join(["The quick brown fox jumps over the lazy dog."] * 40),  # longer than 256 tokens
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE, reason="BERT_JAX_MINILM does not name the model's directory"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("minilm")
    convert.from_hugging_face(SOURCE, directory / "workdir")
    report = convert.to_hugging_face(directory / "workdir", directory / "hf")
    assert report.verified and report.largest < 1e-5, report
    return directory / "hf"


def test_every_tensor_comes_back_bit_for_bit(exported):
    theirs, ours = (load_file(f"{path}/model.safetensors") for path in (SOURCE, exported))
    theirs = {key: x for key, x in theirs.items() if not key.endswith("position_ids")}
    assert len(theirs) > 100 and {f"bert.{key}" for key in theirs} == ours.keys()
    for key, x in theirs.items():
        assert torch.equal(x, ours[f"bert.{key}"]), key


def test_hidden_states(exported):
    read = loading.load_parts(SOURCE)
    model = transformers.BertModel.from_pretrained(SOURCE, attn_implementation="eager").eval()
    sizes = architectures.make_config(read.config.model)
    for batch in parity.inputs(sizes, read.tokenizer):
        ours = parity.flax_outputs(read.params, sizes, "pretraining", batch)
        theirs = parity.torch_outputs(model, keys.BERT.head_class("BertModel"), batch)
        differences = parity.differences([ours], [theirs])
        assert set(differences) == {"hidden", "pooled"}
        assert max(differences.values()) < 1e-5, differences


def test_embeddings_are_sentence_transformers(tmp_path):
    """Their recipe: at most 256 tokens, mean over them, length 1."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    flags = ["--pooling=mean", "--normalize", "--max_seq_length=256"]
    files = [f"--input={tmp_path / 'texts.txt'}", f"--output={tmp_path / 'x.npy'}"]
    predict.main(["embed", f"--model={SOURCE}", *files, *flags])
    read = transformers.AutoTokenizer.from_pretrained(SOURCE)
    batch = read([*TEXTS], padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.BertModel.from_pretrained(SOURCE)(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    cosines = (np.load(tmp_path / "x.npy") * expected).sum(1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
