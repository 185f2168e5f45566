"""CoNLL-2003: persons, organisations, places and others in news (Tjong Kim Sang & De Meulder 2003).

    python -m bert_jax.finetune --config=configs/finetune/conll2003.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/conll2003 \\
        --config.train_file=eng.train --config.validation_file=eng.testa

reads the files as distributed (IOB1). Published entity F1 of BERT-base, cased, on testa: 96.4
(paper, table 7, with document context); uncased models lose what capitals tell.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py and token_classification.py explain the fields."""
    config = recipe("finetune/token_classification")
    config.labels = "O,B-LOC,I-LOC,B-MISC,I-MISC,B-ORG,I-ORG,B-PER,I-PER"
    config.optimizer.learning_rate = 5e-5
    return config
