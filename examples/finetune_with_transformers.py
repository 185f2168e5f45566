"""Fine-tunes an exported checkpoint in plain torch and transformers: a classifier of texts.

    python -m bert_jax.convert to-hf --checkpoint=runs/base --output=runs/base_hf
    python examples/finetune_with_transformers.py --model=runs/base_hf \\
        --train_file=train.csv --validation_file=dev.csv --output=runs/classifier

The files have the columns text and label. Nothing here knows where the model was trained: the
directory is one of transformers, and so is what this writes. Needs the extra `hf`.
"""

import argparse
import csv
import random
from collections.abc import Sequence

import torch
import transformers


def read(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(argv: Sequence[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=3e-5)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    transformers.set_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    train, validation = read(options.train_file), read(options.validation_file)
    labels = sorted({row["label"] for row in train})
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model,
        dtype=torch.float32,  # whatever the weights are stored as: bfloat16 learns badly
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    ).to(device)

    def batch_of(rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        batch = tokenizer(
            [row["text"] for row in rows],
            truncation=True,
            max_length=options.max_length,
            padding=True,
            return_tensors="pt",
        )
        batch["labels"] = torch.tensor([labels.index(row["label"]) for row in rows])
        return batch.to(device)

    def batches(rows: list[dict[str, str]]):
        for start in range(0, len(rows), options.batch_size):
            yield batch_of(rows[start : start + options.batch_size])

    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]  # biases and LayerNorm
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        eps=1e-6,
    )
    steps = options.epochs * -(-len(train) // options.batch_size)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)

    accuracy = 0.0
    for epoch in range(options.epochs):
        model.train()
        random.shuffle(train)
        for batch in batches(train):
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            right = sum(
                (model(**batch).logits.argmax(-1) == batch["labels"]).sum().item()
                for batch in batches(validation)
            )
        accuracy = right / len(validation)
        print(f"epoch {epoch + 1}: accuracy {accuracy:.4f}")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return accuracy


if __name__ == "__main__":
    main()
