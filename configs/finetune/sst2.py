"""SST-2: is a sentence of a film review positive? (GLUE)

    python -m bert_jax.finetune --config=configs/finetune/sst2.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/sst2

reads the Hugging Face data set glue/sst2 (67,349 sentences; needs the extra `hf`). For files with
the columns sentence and label (0, 1) add --config.train_file=… --config.validation_file=….
Published accuracy of BERT-base: 93.5 (paper, table 1).
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py and text_classification.py explain the fields."""
    config = recipe("finetune/text_classification")
    config.train_file = "hf:nyu-mll/glue/sst2:train"
    config.validation_file = "hf:nyu-mll/glue/sst2:validation"
    config.text_column = "sentence"  # column of the text
    config.labels = "0=negative,1=positive"
    return config
