"""SQuAD 2.0: questions about a context that may have no answer in it (Rajpurkar et al. 2018).

    python -m bert_jax.finetune --config=configs/finetune/squad2.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/squad2 \\
        --config.train_file=train-v2.0.json --config.validation_file=dev-v2.0.json

Whether "" may be predicted follows from the training file: it may if a question has no answer.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py and squad.py explain the fields."""
    config = recipe("finetune/squad")
    config.train_file = "hf:rajpurkar/squad_v2:train"
    config.validation_file = "hf:rajpurkar/squad_v2:validation"
    config.batch_size = 48  # as the paper, section 4.3
    config.num_epochs = 2
    return config
