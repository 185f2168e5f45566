"""Any number of labels of a text or of a pair of texts: topics, kinds of toxicity, emotions.

    python -m bert_jax.finetune --config=configs/finetune/multi_label_classification.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/topics \\
        --config.train_file=train.csv --config.validation_file=dev.csv \\
        --config.label_columns=toxic,obscene,threat

WORKDIR/hf has problem_type="multi_label_classification": `transformers.pipeline(
"text-classification", …, top_k=None)` gives each label's own probability.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py explains the other fields."""
    config = recipe("finetune/base")
    config.task = "multi_label_classification"  # any number of labels of each text
    config.text_column = "text"  # column of the text
    config.text_pair_column = ""  # the second text of a pair; "" for single texts
    # Tables: the columns of 0 and 1, one for each label, separated by commas. Without them a row
    # has a list of labels (.jsonl, hf:, tfds:), [] for none, in `label_column`.
    config.label_columns = ""
    config.label_column = "labels"  # column of the label
    # The labels in order, each "value in the file=name", or the value alone, separated by commas.
    # "" takes the columns, or the values of the training file, sorted.
    config.labels = ""
    config.threshold = 0.5  # a label is predicted if its probability is above it
    # What early stopping, select="best" and tables of several runs go by: "f1_micro" (over all
    # decisions), "f1_macro" (mean over labels) or "accuracy" (all labels of a text right).
    config.metric = "f1_micro"
    return config
