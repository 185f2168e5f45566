"""AG News: the topic of a news item, from its title and description (Zhang et al. 2015).

    python -m bert_jax.finetune --config=configs/finetune/ag_news.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/ag_news \\
        --config.train_file=train.csv --config.validation_file=dev.csv

expects the columns label (1 to 4), title and description.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py and text_classification.py explain the fields."""
    config = recipe("finetune/text_classification")
    config.text_column = "title"  # column of the text
    config.text_pair_column = "description"
    config.labels = "1=World,2=Sports,3=Business,4=Sci/Tech"
    return config
