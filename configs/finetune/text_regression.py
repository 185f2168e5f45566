"""A number of a text or of a pair of texts: similarity, quality, stars (STS-B in GLUE).

    python -m bert_jax.finetune --config=configs/finetune/text_regression.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/similarity \\
        --config.train_file=train.csv --config.validation_file=dev.csv \\
        --config.text_column=sentence1 --config.text_pair_column=sentence2

Numbers of the order of 1 to 10 are learnt best: rescale larger ones. For STS-B itself:

    --config.train_file=hf:nyu-mll/glue/stsb:train \\
    --config.validation_file=hf:nyu-mll/glue/stsb:validation \\
    --config.label_column=label
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py explains the other fields."""
    config = recipe("finetune/base")
    config.task = "text_regression"  # a number of each text, or of each pair
    config.text_column = "text"  # column of the text
    config.text_pair_column = ""  # the second text of a pair; "" for single texts
    config.label_column = "score"  # the numbers
    return config
