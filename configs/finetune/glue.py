"""The GLUE tasks (Wang et al. 2018): glue.py:cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli.

    python -m bert_jax.finetune --config=configs/finetune/glue.py:mnli \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/mnli

reads the Hugging Face data set nyu-mll/glue (needs the extra `hf`); for files with the same columns
add --config.train_file=… --config.validation_file=…. Published test scores of BERT-base (paper,
table 1): MNLI 84.6, QQP 71.2 (F1), QNLI 90.5, SST-2 93.5, CoLA 52.1 (Matthews), STS-B 85.8
(Spearman), MRPC 88.9 (F1), RTE 66.4. CoLA, MRPC, RTE and STS-B are small:
seeds differ by a point or more.
"""

import ml_collections

from bert_jax.config import recipe

# task -> text column, column of the second text, classes in the data set's order, GLUE's metric.
TASKS = {
    "cola": ("sentence", "", "0=unacceptable,1=acceptable", "matthews"),
    "mnli": ("premise", "hypothesis", "0=entailment,1=neutral,2=contradiction", "accuracy"),
    "mrpc": ("sentence1", "sentence2", "0=not_equivalent,1=equivalent", "f1"),
    "qnli": ("question", "sentence", "0=entailment,1=not_entailment", "accuracy"),
    "qqp": ("question1", "question2", "0=not_duplicate,1=duplicate", "f1"),
    "rte": ("sentence1", "sentence2", "0=entailment,1=not_entailment", "accuracy"),
    "sst2": ("sentence", "", "0=negative,1=positive", "accuracy"),
    "stsb": ("sentence1", "sentence2", "", "pearson"),  # a similarity from 0 to 5
    "wnli": ("sentence1", "sentence2", "0=not_entailment,1=entailment", "accuracy"),
}


def get_config(arg: str = "sst2") -> ml_collections.ConfigDict:
    """The recipe of a task; base.py and text_classification.py explain the fields."""
    if arg not in TASKS:
        raise ValueError(f"unknown task {arg!r}: one of {', '.join(TASKS)}")
    text_column, text_pair_column, labels, metric = TASKS[arg]
    if labels:
        config = recipe("finetune/text_classification")
        config.labels = labels
        config.metric = metric
    else:
        config = recipe("finetune/text_regression")
        config.label_column = "label"  # column of the label
    config.text_column = text_column
    config.text_pair_column = text_pair_column
    split = "validation_matched" if arg == "mnli" else "validation"
    config.train_file = f"hf:nyu-mll/glue/{arg}:train"
    config.validation_file = f"hf:nyu-mll/glue/{arg}:{split}"
    return config
