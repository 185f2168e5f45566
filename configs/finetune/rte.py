"""RTE: does the premise entail the hypothesis? (GLUE)

    python -m bert_jax.finetune --config=configs/finetune/rte.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/rte \\
        --config.train_file=train.tsv --config.validation_file=dev.tsv

expects the columns premise, hypothesis and label, 1 for entailment (SuperGLUE's and many other
files' names). For GLUE's own data set, where 0 is entailment:

    --config.train_file=hf:nyu-mll/glue/rte:train \\
    --config.validation_file=hf:nyu-mll/glue/rte:validation \\
    --config.text_column=sentence1 --config.text_pair_column=sentence2 \\
    --config.labels=entailment,not_entailment

2,500 pairs are few: seeds differ by several points. Published accuracy of BERT-base: 66.4.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py and text_classification.py explain the fields."""
    config = recipe("finetune/text_classification")
    config.text_column = "premise"  # column of the text
    config.text_pair_column = "hypothesis"
    config.labels = "0=not_entailment,1=entailment"
    config.max_seq_length = 256
    return config
