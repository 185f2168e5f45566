"""Multiple choice: SWAG, which ending follows a scene? (Zellers et al. 2018); your own files.

    python -m bert_jax.finetune --config=configs/finetune/swag.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/swag \\
        --config.train_file=train.csv --config.validation_file=val.csv

reads the files as distributed. Published accuracy of BERT-base: 81.6 (paper, table 4).
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py explains the other fields."""
    config = recipe("finetune/base")
    config.task = "multiple_choice"  # the choice that goes with a context
    config.context_column = "sent1"  # column of what the choices belong to
    config.beginning_column = "sent2"  # what every choice continues; "" for none
    config.choice_columns = "ending0,ending1,ending2,ending3"  # columns of the choices, with commas
    config.label_column = "label"  # the number of the right choice, from 0
    config.max_seq_length = 80
    config.batch_size = 16  # examples, of four sequences each (paper, section 4.4)
    config.optimizer.learning_rate = 2e-5
    return config
