"""Encoder and tokenizer are chosen apart: the whole path with each pair in use."""

import numpy as np
import pytest
import subword_tokenizers as made
import transformers
from small_run import small_config

import bert_jax
from bert_jax import convert, pretrain
from bert_jax.data import tokenizer
from data_prep.build import run as build
from data_prep.options import BuildOptions

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
MAKERS = {"bpe": made.byte_level, "unigram": made.unigram}


@pytest.mark.parametrize(
    ("encoder", "kind"),
    [("roberta", "bpe"), ("modernbert", "bpe"), ("bert", "unigram"), ("roberta", "unigram")],
)
def test_from_text_to_transformers(encoder, kind, tmp_path):
    directory = MAKERS[kind](tmp_path / "tokenizer")
    tok = tokenizer.load(directory)
    (tmp_path / "text.txt").write_text("\n\n".join("\n".join(made.TEXTS) for _ in range(40)))
    options = BuildOptions(
        (str(tmp_path / "text.txt"),),
        str(directory),
        sentence_per_line=True,
        objective="full_sentences",
        masking="dynamic",
        max_seq_length=32,
        num_shards=1,
    )
    build(options, tmp_path / "data", workers=1)
    config = small_config(tmp_path / "data", encoder)
    config.num_steps, config.eval_every, config.checkpoint_every = 6, 0, 6
    config.model.vocab_size = tok.vocab_size
    if encoder == "roberta":
        config.model.update(pad_token_id=tok.pad_id, type_vocab_size=1, max_position_embeddings=34)
    metrics = pretrain.run(config, tmp_path / "run")
    assert np.isfinite(metrics["mlm_loss"])
    assert convert.to_hugging_face(tmp_path / "run", tmp_path / "hf").verified

    model = bert_jax.load(tmp_path / "hf")
    text = f"the river {tok.roles.mask} to the sea"
    (answer,) = model.fill_mask([text])
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(text, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**inputs).logits[0]
    (row,) = np.flatnonzero(inputs["input_ids"][0].numpy() == tok.mask_id)
    scores = torch.softmax(logits[row], -1).numpy()
    best = answer["masks"][0][0]
    assert best["score"] == pytest.approx(scores.max(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "maker"), [("XLMRoberta", made.unigram), ("Camembert", made.unigram)]
)
def test_roberta_s_kin_is_imported_and_embeds(name, maker, tmp_path):
    """An encoder of transformers' class, with more rows than tokens as XLM-R's."""
    directory = maker(tmp_path / "theirs")
    tok = tokenizer.load(directory)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=tok.vocab_size + 6,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=34,
        type_vocab_size=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{name}Model")(config).eval()
    theirs.save_pretrained(directory)
    ours = bert_jax.load(directory)
    assert ours.architecture == "roberta"
    texts = ["the river flows to the sea", "café"]
    read = transformers.AutoTokenizer.from_pretrained(directory)(
        texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = theirs(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
    encoded = ours.encode(texts)
    mask = read["attention_mask"].numpy()
    np.testing.assert_array_equal(encoded.input_ids * mask, read["input_ids"].numpy() * mask)
    difference = np.abs(encoded.last_hidden_state - output.last_hidden_state.numpy())[mask > 0]
    assert difference.max() <= 1e-5
    np.testing.assert_allclose(encoded.pooler_output, output.pooler_output.numpy(), atol=1e-5)
