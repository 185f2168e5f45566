"""Trains a SentencePiece Unigram vocabulary, the same on every run."""

import collections
import io
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import tokenizers
from etils import epath
from tokenizers import normalizers, pre_tokenizers

from bert_jax.cli import UserError, brief
from bert_jax.data.tokenization import sentencepiece
from bert_jax.data.tokenization.subword import METASPACE
from data_prep.progress import Progress
from data_prep.vocabulary import subwords
from data_prep.vocabulary.options import VocabOptions, require_writable
from data_prep.vocabulary.result import Vocabulary
from data_prep.vocabulary.spool import Spool

_OWN_SPECIAL = 3  # SentencePiece's <unk> <s> </s>, which ours replace
_NORMALIZATION = "nmt_nfkc"  # XLM-R's, ALBERT's and XLNet's


def train(options: VocabOptions, output: epath.PathLike | None = None) -> Vocabulary:
    """Trains a vocabulary and, given `output`, saves the tokenizer there.

    The vocabulary holds the special tokens, then the pieces, the likeliest first; RoBERTa's mask
    comes last.

    SentencePiece's own trainer: that of `tokenizers` adds up in another order in every run, so that
    no two are equal. It is given the words in their order, with how often each occurs, so that its
    result does not tell how the text lay in files.

    Args:
      options: which text, and how large a vocabulary.
      output: TOKENIZER_DIR.

    Raises:
      UserError: unusable input or output, a size that the text does not allow, or SentencePiece is
        not installed.
    """
    require_writable(output)
    options = options.checked()
    roles, first, last = subwords.special_tokens(options)
    vocab_size = options.size
    steps = subwords.normalizer_steps(options)
    with Spool(options) as spool:
        words = subwords.count_words(spool, options)
    normal = collections.Counter[str]()
    for word, count in words.items():
        normal[normalizers.Sequence(steps).normalize_str(word)] += count
    with Progress("train vocabulary", 0):
        proto = _train(normal, vocab_size - len(first) - len(last) + _OWN_SPECIAL)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces[_OWN_SPECIAL:]]
    vocab = [*((x, 0.0) for x in first), *pieces, *((x, 0.0) for x in last)]
    unknown = first.index(roles.unknown)
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unknown, byte_fallback=False))
    table = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    backend.normalizer = normalizers.Sequence([*steps, table])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(METASPACE, "always")]
    )
    backend.decoder = tokenizers.decoders.Metaspace(METASPACE, "always")
    return subwords.finish(backend, options, vocab_size, words, output, vocab)


def _train(words: Mapping[str, int], vocab_size: int) -> Any:
    """The ModelProto that SentencePiece learns from words and their counts."""
    try:
        import sentencepiece as library
    except ImportError:
        raise UserError(
            "--kind=unigram is trained by SentencePiece, which is not installed: "
            "pip install 'bert_jax[sentencepiece]'"
        ) from None
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "words.tsv")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{word}\t{count}\n" for word, count in sorted(words.items()))
        try:
            library.SentencePieceTrainer.train(
                input=path,
                input_format="tsv",
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                normalization_rule_name=_NORMALIZATION,
                max_sentence_length=1 << 16,  # bytes of a word: Chinese has no blanks
                num_threads=1,  # sums are added up by threads
                minloglevel=2,
            )
        except RuntimeError as error:  # says which size would do
            raise UserError(f"SentencePiece learnt no vocabulary: {brief(error)}") from None
    return sentencepiece.parse(model.getvalue())
