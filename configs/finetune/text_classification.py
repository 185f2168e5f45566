"""Text classification, of texts or pairs of texts, from your own files.

    python -m bert_jax.finetune --config=configs/finetune/text_classification.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/mine \\
        --config.train_file=train.csv --config.validation_file=dev.csv \\
        --config.text_column=review --config.label_column=stars

WORKDIR/hf is then what `transformers.pipeline("text-classification", …)` loads.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py explains the other fields."""
    config = recipe("finetune/base")
    config.task = "text_classification"  # one class of each text, or of each pair
    config.text_column = "text"  # column of the text
    config.text_pair_column = ""  # the second text of a pair; "" for single texts
    config.label_column = "label"  # column of the label
    # The classes in order, each "value in the file=name", or the value alone, separated by commas
    # (names with a comma or "=" as JSON: {"a, b": "ab", "c": "c"}). "" takes the values of the
    # training file, sorted. Rows of -1 or "-" have no label, unless it is named here.
    config.labels = ""
    # What early stopping, select="best" and tables of several runs go by: "accuracy", "f1" (of the
    # second class where there are two, else macro) or "matthews".
    config.metric = "accuracy"
    # What each class counts in the training loss: "" alike, "balanced" by the inverse of its
    # frequency, or one number a label in their order, separated by commas.
    config.class_weights = ""
    return config
