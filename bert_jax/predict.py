"""Command: what a trained model says of texts, one JSON object a line.

Lines are texts (for tag: words and punctuation, separated by blanks; for fill-mask: texts with
[MASK]). In a .jsonl file, with --jsonl, and for answer always, they are JSON objects with fields:
  classify, embed, fill-mask   text (and text_pair: the second text of a pair)
  zero-shot                    text
  tag                          tokens: a list of words
  answer                       question, context (and id)
Other fields are passed on. Empty lines are passed over: no line of output, no vector, is theirs.
"""

import argparse
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, print_lines, run
from bert_jax.inference import vectors

# JAX, and what imports it, is imported inside the functions: --help must answer at once.

CHUNK = 512  # inputs that are sorted by length and worked off together
BUCKETS = (16, 32, 64, 128, 256, 512)  # padded lengths: at most as many programs to compile
FIELDS = {
    "classify": ("text",),
    "embed": ("text",),
    "fill-mask": ("text",),
    "zero-shot": ("text",),
    "tag": ("tokens",),
    "answer": ("question", "context"),
}
RESULTS = {
    "classify": {"prediction", "scores"},
    "embed": {"embedding"},
    "fill-mask": {"masks"},
    "zero-shot": {"prediction", "scores"},
    "tag": {"labels", "scores", "entities"},
    "answer": {"prediction", "n_best"},
}
HEADS = {
    "classify": ("text_classification", "text_regression"),
    "tag": ("token_classification",),
    "answer": ("question_answering",),
    "zero-shot": ("text_classification",),
}
Record = dict[str, Any]


def read_records(lines: Iterable[str], name: str, command: str, jsonl: bool) -> Iterator[Record]:
    """The inputs as objects with a command's fields; empty lines are passed over.

    Raises:
      UserError: a line that is not JSON or lacks a field; names the line.
    """
    from bert_jax.tasks import tables

    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        if not jsonl and command != "answer":
            yield {"tokens": line.split()} if command == "tag" else {"text": line}
            continue
        try:
            record = tables.parse_json(line)
        except ValueError as error:
            raise UserError(f"{name}:{number} is not JSON ({error})") from None
        wanted = list if command == "tag" else str
        if not isinstance(record, dict):
            record = {}
        if taken := sorted(record.keys() & RESULTS[command]):
            raise UserError(
                f"{name}:{number} has the field {taken[0]!r}, where {command} writes its result: "
                "rename it"
            )
        if not isinstance(record.get("text_pair") or "", str):
            raise UserError(f"{name}:{number}: 'text_pair' is not a text")
        for field in FIELDS[command]:
            value = record.get(field)
            if not isinstance(value, wanted) or not value or (wanted is list and None in value):
                raise UserError(
                    f"{name}:{number}: {command} needs the field {field!r} "
                    f"({'a list of words' if command == 'tag' else 'a text'}, not empty)"
                )
        yield record


class Predictor:
    """A model on the device, applied to chunks of inputs.

    Raises:
      UserError: the model lacks what the command needs.
    """

    def __init__(self, command: str, model: str, arguments: argparse.Namespace):
        import jax
        import ml_collections

        from bert_jax import loading
        from bert_jax.models import architectures, heads
        from bert_jax.runs import workdir as workdirs
        from bert_jax.tasks import kinds

        path = epath.Path(model)
        workdir, run = workdirs.best_run(path) or path, {}
        if (workdir / workdirs.CONFIG_FILE).exists() and (path / "hf" / "config.json").exists():
            run = workdirs.read_config(workdir).to_dict()
            if "task" in run:  # the selected epoch of a fine-tuning
                path = path / "hf"
        self.loaded = loading.load_parts(path)
        run = run or self.loaded.config.to_dict()
        task = self.loaded.config.get("task", "pretraining")  # pretraining configs have none
        params = self.loaded.params
        if command in HEADS and task not in HEADS[command]:
            raise UserError(
                f"{model} has no head to {command} with (it is a {task} model): fine-tune one for "
                f"{HEADS[command][0]} with bert_jax.finetune"
            )
        if command == "fill-mask" and "mlm_transform" not in params:
            raise UserError(f"{model} has no MLM head: fill-mask needs a pretraining model")
        config = architectures.make_config(self.loaded.config.model, arguments.dtype)
        longest = config.max_position_embeddings
        wanted = arguments.max_seq_length or run.get("max_seq_length", longest)
        self.max_length = min(wanted, longest)
        self.buckets = (*(b for b in BUCKETS if b < self.max_length), self.max_length)
        self._batch_size = arguments.batch_size
        self.labels = tuple(self.loaded.config.get("labels", ()))
        self.task = None
        if command in HEADS:
            module = kinds.make_module(task, config, len(self.labels))
            settings = {"task": task, "max_seq_length": self.max_length, "labels": ""}
            if command == "answer":
                question, stride = run.get("max_question_length", 64), run.get("doc_stride", 128)
                if arguments.max_seq_length or "max_question_length" not in run:
                    question = min(question, self.max_length // 4)
                    stride = max(1, min(stride, self.max_length // 3))
                settings |= {
                    "max_question_length": question,
                    "doc_stride": stride,
                    "max_answer_length": arguments.max_answer_length,
                    "n_best": arguments.top_k,
                    "null_threshold": arguments.null_threshold,
                }
            self.task = kinds.make_task(ml_collections.ConfigDict(settings), self.loaded.tokenizer)
            if command == "answer":
                self.task.may_have_none = arguments.null_threshold is not None

            def apply(params: Any, *inputs: Any) -> Any:
                return module.apply({"params": params}, *inputs)
        elif command == "fill-mask":
            module = heads.PretrainingModel(config)
            params = heads.with_zeros(params, module)

            def apply(params: Any, *inputs: Any) -> Any:
                logits_BMV = module.apply({"params": params}, *inputs).mlm_logits_BMV
                return jax.nn.softmax(logits_BMV[..., : config.vocab_size])
        else:
            architecture = architectures.of(config)
            module, params = architecture.encoder(config), params[architecture.prefix]
            pooling = arguments.pooling

            def apply(params: Any, ids_BL: Any, mask_BL: Any, types_BL: Any) -> Any:
                hidden_BLD = module.apply(
                    {"params": params}, ids_BL, mask_BL, types_BL, method="encode"
                )
                return heads.pool(hidden_BLD, mask_BL, pooling)

        self._params = jax.device_put(params)
        self._apply = jax.jit(apply)

    def outputs(self, rows: Sequence[Record], *extra: str) -> list[Any]:
        """The model's output for every row of input_ids, token_type_ids and `extra` arrays."""
        import jax

        from bert_jax.data import batching

        results: list[Any] = [None] * len(rows)
        batches = batching.sorted_batches([len(r["input_ids"]) for r in rows], self._batch_size)
        names = ("input_ids", "attention_mask", "token_type_ids", *extra)
        for indices, batch in batching.iterate(rows, batches, self.buckets, self._batch_size):
            values = jax.device_get(self._apply(self._params, *(batch[name] for name in names)))
            for i, value in zip(indices, values, strict=False):  # without the filling rows
                results[i] = value
        return results


def text_rows(predictor: Predictor, records: Sequence[Record]) -> list[Record]:
    """The arrays of one text, or a pair of them, a record."""
    from bert_jax.tasks.base import join

    encode = predictor.loaded.tokenizer.encode
    rows = []
    for record in records:
        second = encode(record["text_pair"]) if record.get("text_pair") else None
        ids, segments = join(
            predictor.loaded.tokenizer, encode(record["text"]), second, predictor.max_length
        )
        rows.append({"input_ids": ids, "token_type_ids": segments})
    return rows


def classify(predictor: Predictor, records: Sequence[Record]) -> Iterator[Record]:
    import numpy as np

    from bert_jax.tasks import scores

    for logits_C in predictor.outputs(text_rows(predictor, records)):
        if predictor.loaded.config.task == "text_regression":
            yield {"prediction": float(logits_C[0])}
            continue
        probs_C = np.exp(scores.log_softmax(logits_C))
        by_label = dict(zip(predictor.labels, map(float, probs_C), strict=True))
        yield {"prediction": max(by_label, key=by_label.get), "scores": by_label}


def tag(predictor: Predictor, records: Sequence[Record]) -> Iterator[Record]:
    import numpy as np

    from bert_jax.tasks import scores

    words = [tuple(map(str, record["tokens"])) for record in records]
    features = predictor.task.windows(words)
    rows = [feature.arrays for feature in features]
    results: list[list[Record]] = [[] for _ in records]
    for feature, logits_LC in zip(features, predictor.outputs(rows), strict=True):
        for probs_C in np.exp(scores.log_softmax(logits_LC[feature.origin])):
            best = int(probs_C.argmax())
            result = {"label": predictor.labels[best], "score": float(probs_C[best])}
            results[feature.example].append(result)
    for sentence, found in zip(words, results, strict=True):
        labels = [x["label"] for x in found]
        line = {"labels": labels, "scores": [round(x["score"], 6) for x in found]}
        if scores.are_entities(predictor.labels):
            line["entities"] = [
                {"type": kind, "start": start, "end": end, "text": " ".join(sentence[start:end])}
                for kind, start, end in scores.entities(labels)
            ]
        yield line


def answer(predictor: Predictor, records: Sequence[Record]) -> Iterator[Record]:
    from bert_jax.tasks.answers import Question

    questions = [
        Question(str(record.get("id", i)), record["question"], record["context"], (), 0)
        for i, record in enumerate(records)
    ]
    features = predictor.task.features(questions)
    outputs = predictor.outputs([feature.arrays for feature in features])
    for line in predictor.task.answers(questions, features, outputs):
        yield {"prediction": line["prediction"], "n_best": line["n_best"]}


def zero_shot(
    predictor: Predictor, records: Sequence[Record], labels: Sequence[str], template: str
) -> Iterator[Record]:
    """How well each label fits: does the text entail the template with the label in it?

    Yin et al. 2019 (https://arxiv.org/abs/1909.00161); softmax of the labels' entailment logits.
    """
    import numpy as np

    from bert_jax.tasks import scores

    if "{}" not in template:
        raise UserError(f"--template={template!r} has no {{}} where the label goes")
    entailment = [i for i, name in enumerate(predictor.labels) if name.lower().startswith("entail")]
    if len(entailment) != 1:
        raise UserError(
            f"zero-shot needs a model of textual entailment, with a label 'entailment': this one "
            f"has {', '.join(map(repr, predictor.labels))} (fine-tune one with "
            "configs/finetune/glue.py:mnli)"
        )
    pairs = [
        {"text": record["text"], "text_pair": template.replace("{}", label)}
        for record in records
        for label in labels
    ]
    logits = np.array(predictor.outputs(text_rows(predictor, pairs)))[:, entailment[0]]
    for logits_C in logits.reshape(len(records), len(labels)):
        probs_C = np.exp(scores.log_softmax(logits_C))
        by_label = dict(zip(labels, map(float, probs_C), strict=True))
        yield {"prediction": max(by_label, key=by_label.get), "scores": by_label}


def fill_mask(predictor: Predictor, records: Sequence[Record], top_k: int) -> Iterator[Record]:
    import numpy as np

    tokenizer = predictor.loaded.tokenizer
    rows = text_rows(predictor, records)
    places = [
        [i for i, token in enumerate(row["input_ids"]) if token == tokenizer.mask_id]
        for row in rows
    ]
    mask = tokenizer.vocab[tokenizer.mask_id]
    for record, found in zip(records, places, strict=True):
        count = (record["text"] + (record.get("text_pair") or "")).count(mask)
        if not count:
            raise UserError(f"no {mask} in {record['text'][:80]!r}")
        if len(found) < count:
            raise UserError(
                f"a {mask} stands behind the {predictor.max_length} tokens that are read of "
                f"{record['text'][:80]!r}: shorten the text"
            )
    # A power of two: few shapes to compile.
    slots = 1 << (max(map(len, places)) - 1).bit_length()
    for row, found in zip(rows, places, strict=True):
        row["positions"] = found + [0] * (slots - len(found))
    outputs = predictor.outputs(rows, "positions")
    for probs_MV, found in zip(outputs, places, strict=True):
        yield {
            "masks": [
                [
                    {"token": tokenizer.vocab[i], "score": float(probs_V[i])}
                    for i in np.argsort(-probs_V, kind="stable")[:top_k]
                ]
                for probs_V in probs_MV[: len(found)]
            ]
        }


def embed(predictor: Predictor, records: Sequence[Record], normalize: bool) -> Iterator[Any]:
    """float32[D] a record."""
    import numpy as np

    for x_D in predictor.outputs(text_rows(predictor, records)):
        yield x_D / max(float(np.linalg.norm(x_D)), 1e-12) if normalize else x_D


def parse_names(text: str) -> list[str]:
    """'sports, politics' -> ['sports', 'politics']."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"--labels={text!r}: expected two or more different labels, by commas")
    return names


def predictions(
    arguments: argparse.Namespace, records: Iterable[Record]
) -> Iterator[tuple[Record, Any]]:
    """(input, its result) in the order of the inputs, read a chunk at a time."""
    command = arguments.command
    predictor = Predictor(command, arguments.model, arguments)
    functions = {
        "classify": classify,
        "tag": tag,
        "answer": answer,
        "fill-mask": lambda *x: fill_mask(*x, top_k=arguments.top_k),
        "zero-shot": lambda *x: zero_shot(
            *x, labels=parse_names(arguments.labels), template=arguments.template
        ),
        "embed": lambda *x: embed(*x, normalize=arguments.normalize),
    }
    records = iter(records)
    while chunk := list(itertools.islice(records, CHUNK)):
        yield from zip(chunk, functions[command](predictor, chunk), strict=True)


def _standard_input() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):  # in some locales it takes any byte
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text ({error})") from None


def check_output(output: str) -> None:
    """Makes the directory of a file to be written.

    Raises:
      UserError: it cannot be written; before anything is computed.
    """
    path = epath.Path(output)
    if path.is_dir():
        raise UserError(f"--output={output} is a directory, expected a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written ({error})") from None
    is_local = os.path.isdir(path.parent)
    if is_local and not files.is_stream(path) and not os.access(path.parent, os.W_OK):
        raise UserError(f"--output={output} cannot be written ({path.parent} is read-only)")


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.predict",
        description=__doc__.removeprefix("Command: "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("classify", "the class of a text or a pair, or its number"),
        ("tag", "the labels of words, and the entities they make"),
        ("answer", "the span of a context that answers a question"),
        ("fill-mask", "the likeliest tokens for each [MASK]"),
        ("zero-shot", "the fitting one of any labels, by a model of textual entailment"),
        ("embed", "a vector of a text"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "--model", required=True, help="WORKDIR, checkpoint, Hugging Face directory or hub name"
        )
        command.add_argument("--input", default="-", help="a file; - is standard input (default)")
        kinds = " (.npy: the vectors alone; .parquet: with rows and ids)" if name == "embed" else ""
        command.add_argument(
            "--output", default="-", help=f"a file{kinds}; - is standard output (default)"
        )
        command.add_argument("--jsonl", action="store_true", help="lines are JSON objects")
        command.add_argument("--batch_size", type=_at_least(1), default=32)
        command.add_argument(
            "--max_seq_length",
            type=_at_least(8),
            help="cut longer texts, or read them in parts (tag, answer); default: as the model was "
            "fine-tuned, else all that it takes",
        )
        command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
        if name in ("answer", "fill-mask"):
            number = _at_least(1)
            command.add_argument("--top_k", type=number, default=5, help="alternatives listed")
        if name == "answer":
            command.add_argument(
                "--max_answer_length", type=_at_least(1), default=30, help="in tokens"
            )
            command.add_argument(
                "--null_threshold",
                type=float,
                help="answer '' if its score is higher than the best span's by more than this; "
                "without it always a span",
            )
        if name == "zero-shot":
            command.add_argument("--labels", required=True, help="separated by commas")
            command.add_argument(
                "--template", default="This example is {}.", help="a sentence; {} is the label"
            )
        if name == "embed":
            command.add_argument("--pooling", choices=("cls", "mean", "max"), default="mean")
            command.add_argument("--normalize", action="store_true", help="vectors of length 1")
    return parser


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.output != "-":
        check_output(arguments.output)
        if files.absolute(arguments.output) == files.absolute(arguments.input):
            raise UserError(f"--output={arguments.output} is the input: give another file")
    if arguments.command == "embed":
        vectors.check(arguments.output)
    from bert_jax.tasks import tables

    if arguments.input.endswith((".csv", ".tsv")):
        raise UserError(
            f"--input={arguments.input}: expected a text a line, or a .jsonl file with fields"
        )
    if arguments.input == "-":
        lines = _standard_input()
    else:
        lines = tables.read_text(arguments.input).split("\n")
    jsonl = arguments.jsonl or arguments.input.endswith(".jsonl")
    name = "standard input" if arguments.input == "-" else arguments.input
    results = predictions(arguments, read_records(lines, name, arguments.command, jsonl))
    if arguments.command == "embed" and epath.Path(arguments.output).suffix in vectors.FORMATS:
        vectors.write(arguments.output, results, name)
        return
    texts = (
        json.dumps(
            record | ({"embedding": result.tolist()} if arguments.command == "embed" else result),
            ensure_ascii=False,
        )
        for record, result in results
    )
    if arguments.output == "-":
        print_lines(texts)
        return
    files.write_whole(arguments.output, "".join(f"{text}\n" for text in texts))


def cli() -> None:
    run(main)


if __name__ == "__main__":
    sys.exit(cli())
