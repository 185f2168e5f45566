"""Token classification (entities, parts of speech), from your own files.

    python -m bert_jax.finetune --config=configs/finetune/token_classification.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/entities \\
        --config.train_file=train.conll --config.validation_file=dev.conll

WORKDIR/hf is then what `transformers.pipeline("token-classification", …)` loads.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py explains the other fields.

    train_file and validation_file: CoNLL columns (one word per line, an empty line between
    sentences), .jsonl with a list of words and a list of labels per line, hf: or
    tfds:NAME[/CONFIG]:SPLIT.
    """
    config = recipe("finetune/base")
    config.task = "token_classification"  # a label of each word
    config.word_index = 0  # CoNLL files: the column of the word, from 0 (CoNLL-U: 1)
    config.tag_index = -1  # CoNLL files: the column of the label; -1 is the last (CoNLL-U: 3, …)
    config.words_column = "tokens"  # .jsonl and data sets: the list of words
    config.tags_column = "tags"  # .jsonl and data sets: the list of labels
    # The labels in order, each "value in the file=name" or the value alone, separated by commas.
    # "" takes those of the training file, O first. Schemes of entities (IOB1, IO, BIOES, BILOU,
    # plain B/I/O) become IOB2, unless labels of another scheme are named here.
    config.labels = ""
    # What early stopping, select="best" and tables of several runs go by: "f1" of entities or
    # "accuracy" of words; "" is f1 where the labels follow a scheme of entities, else accuracy.
    config.metric = ""
    # What each class counts in the training loss: "" alike, "balanced" by the inverse of its
    # frequency, or one number a label in their order, separated by commas.
    config.class_weights = ""
    return config
