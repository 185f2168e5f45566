"""IMDb: is a film review positive? (Maas et al. 2011)

    python -m bert_jax.finetune --config=configs/finetune/imdb.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/imdb

reads the Hugging Face data set imdb (25,000 reviews to train, as many to test; needs the extra
`hf`). It has no validation split, so epochs are evaluated on the test split: to choose settings,
hold out a part of the other, which is sorted by label:

    --config.train_file='hf:stanfordnlp/imdb:train[:45%]+train[50%:95%]' \\
    --config.validation_file='hf:stanfordnlp/imdb:train[45%:50%]+train[95%:]'

For files with the columns text and label (0, 1) add --config.train_file=…
--config.validation_file=…. Of reviews longer than 512 tokens the beginning is read.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py and text_classification.py explain the fields."""
    config = recipe("finetune/text_classification")
    config.train_file = "hf:stanfordnlp/imdb:train"
    config.validation_file = "hf:stanfordnlp/imdb:test"
    config.labels = "0=negative,1=positive,neg=negative,pos=positive"  # of files; of the data set
    config.max_seq_length = 512
    config.optimizer.learning_rate = 2e-5
    return config
