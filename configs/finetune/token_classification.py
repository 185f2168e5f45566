"""Labels of words (entities, parts of speech), from one's own files.

    python -m bert_jax.finetune --config=configs/finetune/token_classification.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/entities \\
        --config.train_file=train.conll --config.validation_file=dev.conll

WORKDIR/hf is then what `transformers.pipeline("token-classification", …)` loads.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py explains the other fields.

    train_file and validation_file: CoNLL columns (a word a line, an empty line between sentences),
    .jsonl with a list of words and a list of labels a line, hf: or tfds:NAME[/CONFIG]:SPLIT.
    """
    config = recipe("finetune/base")
    config.task = "token_classification"
    config.tag_index = -1  # CoNLL files: the column of the label, from 0; -1 is the last
    config.words_column = "tokens"  # .jsonl and data sets: the list of words
    config.tags_column = "tags"  # .jsonl and data sets: the list of labels
    # The labels in order, each "value in the file=name" or the value alone, separated by commas.
    # "" takes those of the training file, O first. IOB1 becomes IOB2.
    config.labels = ""
    # What each class counts in the training loss: "" alike, "balanced" by the inverse of its
    # frequency, or one number a label in their order, separated by commas.
    config.class_weights = ""
    return config
