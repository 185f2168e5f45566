"""Extractive question answering: SQuAD 1.1 (Rajpurkar et al. 2016), and your own SQuAD files.

    python -m bert_jax.finetune --config=configs/finetune/squad.py \\
        --init=WORKDIR_OR_HF_DIR --workdir=runs/squad \\
        --config.train_file=train-v1.1.json --config.validation_file=dev-v1.1.json

Without files it reads the Hugging Face data set rajpurkar/squad (needs the extra `hf`). Published
F1 of BERT-base: 88.5 (paper, table 2). squad2.py is the same for questions without an answer.
"""

import ml_collections

from bert_jax.config import recipe


def get_config() -> ml_collections.ConfigDict:
    """The recipe; base.py explains the other fields.

    train_file and validation_file: SQuAD's .json (1.1 or 2.0), or a data set with its columns, by
    hf:NAME:SPLIT or tfds:NAME:SPLIT.
    """
    config = recipe("finetune/base")
    config.task = "question_answering"  # the span of a context that answers a question
    config.train_file = "hf:rajpurkar/squad:train"
    config.validation_file = "hf:rajpurkar/squad:validation"
    config.max_seq_length = 384
    config.max_question_length = 64  # tokens; longer questions are cut
    config.doc_stride = 128  # tokens between the beginnings of two windows on a long context
    config.max_answer_length = 30  # tokens
    config.n_best = 20  # answers kept a question, in predictions.jsonl
    # With questions that have no answer: "" is predicted if its score is higher than the best
    # span's by more than this.
    config.null_threshold = 0.0
    config.optimizer.learning_rate = 5e-5
    return config
