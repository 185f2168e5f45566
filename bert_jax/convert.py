"""Command: turns checkpoints of this project into Hugging Face directories, and back.

`PARTS` is the one table of names and layouts, read in both directions.
"""

import argparse
import dataclasses
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, run
from bert_jax.huggingface import hub

# Imported where used, so that --help answers at once: bert_jax.runs.checkpoint (Orbax), flax, jax.

# How a module's arrays are called and laid out on each side: (our name, theirs, transform).
#   TRANSPOSE: our kernels are [in, out], torch's weights [out, in].
#   UNPAD: we pad the vocabulary to a multiple of 128, Hugging Face does not.
SAME, TRANSPOSE, UNPAD = "same", "transpose", "unpad"
DENSE = (("/kernel", ".weight", TRANSPOSE), ("/bias", ".bias", SAME))
LAYER_NORM = (("/scale", ".weight", SAME), ("/bias", ".bias", SAME))
EMBEDDING = (("/embedding", ".weight", SAME),)
VOCABULARY = (("/embedding", ".weight", UNPAD),)
OUTPUT_BIAS = (("", "", UNPAD),)

# part of a model -> rows of (our module, Hugging Face's module, its kind), {i} counting the layers.
# The decoder of the MLM head is the word embedding, so it has no row.
PARTS: dict[str, tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...]] = {
    "encoder": (
        ("bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings", VOCABULARY),
        ("bert/embeddings/position_embeddings", "bert.embeddings.position_embeddings", EMBEDDING),
        (
            "bert/embeddings/token_type_embeddings",
            "bert.embeddings.token_type_embeddings",
            EMBEDDING,
        ),
        ("bert/embeddings/layer_norm", "bert.embeddings.LayerNorm", LAYER_NORM),
        (
            "bert/encoder/layer_{i}/attention/query",
            "bert.encoder.layer.{i}.attention.self.query",
            DENSE,
        ),
        (
            "bert/encoder/layer_{i}/attention/key",
            "bert.encoder.layer.{i}.attention.self.key",
            DENSE,
        ),
        (
            "bert/encoder/layer_{i}/attention/value",
            "bert.encoder.layer.{i}.attention.self.value",
            DENSE,
        ),
        (
            "bert/encoder/layer_{i}/attention/output",
            "bert.encoder.layer.{i}.attention.output.dense",
            DENSE,
        ),
        (
            "bert/encoder/layer_{i}/attention_layer_norm",
            "bert.encoder.layer.{i}.attention.output.LayerNorm",
            LAYER_NORM,
        ),
        ("bert/encoder/layer_{i}/intermediate", "bert.encoder.layer.{i}.intermediate.dense", DENSE),
        ("bert/encoder/layer_{i}/output", "bert.encoder.layer.{i}.output.dense", DENSE),
        (
            "bert/encoder/layer_{i}/output_layer_norm",
            "bert.encoder.layer.{i}.output.LayerNorm",
            LAYER_NORM,
        ),
    ),
    "pooler": (("bert/pooler", "bert.pooler.dense", DENSE),),
    "MLM head": (
        ("mlm_transform", "cls.predictions.transform.dense", DENSE),
        ("mlm_layer_norm", "cls.predictions.transform.LayerNorm", LAYER_NORM),
        ("mlm_bias", "cls.predictions.bias", OUTPUT_BIAS),
    ),
    "NSP head": (("nsp_classifier", "cls.seq_relationship", DENSE),),
    "classifier": (("classifier", "classifier", DENSE),),
    "span classifier": (("span_classifier", "qa_outputs", DENSE),),
}

# transformers class -> the parts it has besides the encoder. A BertModel may have a pooler too.
REQUIRED: dict[str, tuple[str, ...]] = {
    "BertModel": (),
    "BertForMaskedLM": ("MLM head",),
    "BertForNextSentencePrediction": ("pooler", "NSP head"),
    "BertForPreTraining": ("pooler", "MLM head", "NSP head"),
    "BertForSequenceClassification": ("pooler", "classifier"),
    "BertForTokenClassification": ("classifier",),
    "BertForQuestionAnswering": ("span classifier",),
    "BertForMultipleChoice": ("pooler", "classifier"),
}
# Of a run's config, what its model card says.
CARD_FIELDS = (
    *("imported_from", "data_dir", "train_file", "validation_file", "init"),
    *("batch_size", "num_steps", "num_epochs", "max_seq_length", "seed"),
)
PIPELINES = {
    "BertModel": "feature-extraction",
    "BertForMaskedLM": "fill-mask",
    "BertForNextSentencePrediction": "feature-extraction",
    "BertForPreTraining": "fill-mask",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
}


def rows(model: Any) -> Iterator[tuple[str, str, str, str]]:
    """(part, our path, Hugging Face's key, transform) of every parameter of `model`'s size."""
    for part, modules in PARTS.items():
        for ours, theirs, kind in modules:
            for i in range(model.num_hidden_layers if "{i}" in ours else 1):
                for our_name, their_name, transform in kind:
                    yield (
                        part,
                        ours.format(i=i) + our_name,
                        theirs.format(i=i) + their_name,
                        transform,
                    )


def shapes(model: Any, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Hugging Face's key -> its shape there, over every part, read off our own modules."""
    import flax.traverse_util
    import jax

    from bert_jax.models import heads

    model = dataclasses.replace(model, scan_layers=False)
    ids = jax.ShapeDtypeStruct((1, 8), np.int32)
    modules = (
        heads.BertForPreTraining(model),
        heads.BertForTokenClassification(model, num_labels),
        heads.BertForQuestionAnswering(model),
    )
    ours: dict[str, tuple[int, ...]] = {}
    for module in modules:
        tree = jax.eval_shape(module.init, jax.random.key(0), ids, ids, ids)["params"]
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        ours |= {path: x.shape for path, x in flat.items()}
    theirs = {}
    for _, path, key, transform in rows(model):
        shape = ours[path]
        if transform == TRANSPOSE:
            shape = shape[::-1]
        elif transform == UNPAD:
            shape = (model.vocab_size, *shape[1:])
        theirs[key] = shape
    return theirs


def to_tensors(params: Any, model: Any) -> dict[str, np.ndarray]:
    """Parameters of an unrolled encoder -> Hugging Face's tensors, in the table's order.

    Args:
      params: nested dict of host arrays.
      model: the BertConfig of `params`.

    Raises:
      UserError: `params` are not those of a `model` of this project; lists every difference.
    """
    import flax.traverse_util

    ours = flax.traverse_util.flatten_dict(params, sep="/")
    tensors: dict[str, np.ndarray] = {}
    for _, path, key, transform in rows(model):
        if path in ours:
            x = np.asarray(ours.pop(path))
            tensors[key] = {SAME: x, TRANSPOSE: x.T, UNPAD: x[: model.vocab_size]}[transform]
    problems = [f"unknown parameter {path}" for path in ours]
    _check(tensors, model, (), problems, "the checkpoint does not fit its config.json")
    return tensors


def from_tensors(tensors: dict[str, np.ndarray], model: Any, architecture: str) -> Any:
    """Hugging Face's tensors -> our parameters. Parts that are not there are left out.

    Raises:
      UserError: keys missing from a part that is there or that `architecture` has, keys that are
        not in the table, shapes other than config.json's: all of them in one message.
    """
    import flax.traverse_util

    theirs = _normalised(tensors)
    problems = []
    decoder = theirs.pop("cls.predictions.decoder.weight", None)
    embedding = theirs.get("bert.embeddings.word_embeddings.weight")
    if decoder is not None and embedding is not None and not np.array_equal(decoder, embedding):
        problems.append(
            "cls.predictions.decoder.weight differs from the word embeddings (this project's MLM "
            "head is tied to them)"
        )
    decoder_bias = theirs.pop("cls.predictions.decoder.bias", None)
    if decoder_bias is not None:
        bias = theirs.setdefault("cls.predictions.bias", decoder_bias)
        if not np.array_equal(bias, decoder_bias):
            problems.append("cls.predictions.decoder.bias differs from cls.predictions.bias")
    known = {key for _, _, key, _ in rows(model)}
    extra = sorted(theirs.keys() - known)
    problems += [f"unknown key {key} {list(theirs[key].shape)}" for key in extra]
    _check(
        {key: x for key, x in theirs.items() if key in known},
        model,
        REQUIRED.get(architecture, ()),
        problems,
        f"these are not the weights of a {architecture} with the sizes in config.json",
    )
    flat = {}
    for _, path, key, transform in rows(model):
        if key in theirs:
            x = theirs[key]
            if transform == TRANSPOSE:
                x = x.T
            elif transform == UNPAD:
                surplus = model.padded_vocab_size - model.vocab_size
                x = np.pad(x, [(0, surplus)] + [(0, 0)] * (x.ndim - 1))
            flat[path] = np.ascontiguousarray(x)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _normalised(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One spelling of keys: old LayerNorm names, a bare BertModel's missing prefix, no buffers."""
    bare = not any(key.startswith("bert.") for key in tensors)
    theirs = {}
    for key, x in tensors.items():
        if key.endswith("embeddings.position_ids"):  # 0, 1, 2, …: a buffer, not a parameter
            continue
        key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
        key = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)
        if bare and re.match(r"(embeddings|encoder|pooler)\.", key):
            key = f"bert.{key}"
        theirs[key] = x
    return theirs


def _check(
    tensors: dict[str, np.ndarray],
    model: Any,
    required: Sequence[str],
    problems: list[str],
    verdict: str,
) -> None:
    """Raises one UserError with `problems`, incomplete parts and wrong shapes."""
    kernel = tensors.get("classifier.weight")
    expected = shapes(model, kernel.shape[0] if kernel is not None else 1)
    part_of = {key: part for part, _, key, _ in rows(model)}
    present = {"encoder", *required, *(part_of[key] for key in tensors)}
    for key, shape in expected.items():
        if key not in tensors and part_of[key] in present:
            problems.append(f"missing key {key} {list(shape)} ({part_of[key]})")
        elif key in tensors and tensors[key].shape != shape:
            problems.append(f"{key} is {list(tensors[key].shape)}, expected {list(shape)}")
    if problems:
        listed = "\n  ".join(problems[:40])
        more = f"\n  … and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise UserError(f"{verdict}; {len(problems)} difference(s):\n  {listed}{more}")


def parts_of(params: Any) -> tuple[str, ...]:
    """The parts that `params` has, in the table's order."""
    names = {
        "pooler": "pooler" in params["bert"],
        "MLM head": "mlm_transform" in params,
        "NSP head": "nsp_classifier" in params,
        "classifier": "classifier" in params,
        "span classifier": "span_classifier" in params,
    }
    return ("encoder", *(part for part, there in names.items() if there))


def architecture_of(params: Any, task: str) -> str:
    """The transformers class that holds `params`."""
    from bert_jax.huggingface.files import ARCHITECTURES

    if task in ARCHITECTURES:
        return ARCHITECTURES[task]
    parts = parts_of(params)
    for name in ("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction"):
        if set(REQUIRED[name]) <= set(parts):
            return name
    return "BertModel"


def read_hf(source: str | epath.PathLike) -> Any:
    """Reads a Hugging Face directory (or hub repository): a `checkpoint.Loaded` at step 0.

    Its `config` has `model`, `task`, `labels` and `imported_from`.

    Raises:
      UserError: see `hf_files.read_config`, `hf_files.read_tensors` and `from_tensors`.
    """
    import ml_collections

    from bert_jax.data import tokenizer
    from bert_jax.huggingface import files as hf_files
    from bert_jax.runs import checkpoint

    directory = hf_files.locate(source)
    described = hf_files.read_config(directory)
    vocabulary = tokenizer.load(directory)
    if vocabulary.vocab_size > described.model.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {vocabulary.vocab_size:,} tokens, "
            f"the model only {described.model.vocab_size:,}"
        )
    tensors = hf_files.read_tensors(directory)
    try:
        params = from_tensors(tensors, described.model, described.architecture)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    labels: tuple[str, ...] = ()
    if "classifier" in params and described.task != "multiple_choice":
        count = params["classifier"]["bias"].shape[0]
        if described.task == "text_regression" and count != 1:
            raise UserError(
                f"{source}: a regression head with {count} outputs; those with one are known here"
            )
        labels = described.labels or tuple(f"LABEL_{i}" for i in range(count))
        if len(labels) != count:
            raise UserError(
                f"{source}: config.json names {len(labels)} labels, the head has {count}"
            )
    config = {
        "model": dataclasses.asdict(described.model),
        "task": described.task,
        "labels": list(labels),
        "imported_from": str(source),
    }
    return checkpoint.Loaded(params, ml_collections.ConfigDict(config), 0, vocabulary)


def from_hf(source: str | epath.PathLike, output: str | epath.PathLike) -> tuple[str, ...]:
    """Imports a Hugging Face model as a WORKDIR of parameters.

    Returns:
      the parts that the model has; the others are left out, not initialised.
    """
    from bert_jax.runs import checkpoint

    loaded = read_hf(source)
    checkpoint.save_params(output, loaded.params, loaded.config, loaded.tokenizer, loaded.step)
    return parts_of(loaded.params)


def to_hf(
    source: str | epath.PathLike,
    output: str | epath.PathLike,
    dtype: str = "float32",
    max_shard_size: int = 5 * 10**9,
) -> Any:
    """Exports what `checkpoint.load` takes as a Hugging Face directory, parity-checked.

    Args:
      dtype: of the stored weights, "float32" or "bfloat16".
      max_shard_size: bytes above which the weights are split over files.

    Returns:
      the `parity.ParityReport`.

    Raises:
      UserError: nothing to export; `output` holds something else; or transformers computes
        something else from what was written, in which case `output` is left as it was.
    """
    from bert_jax.huggingface import files as hf_files
    from bert_jax.runs import checkpoint

    hf_files.check_replaceable(epath.Path(output))
    return write_hf(checkpoint.load(source), source, output, dtype, max_shard_size)


def write_hf(
    loaded: Any,
    source: str | epath.PathLike,
    output: str | epath.PathLike,
    dtype: str = "float32",
    max_shard_size: int = 5 * 10**9,
) -> Any:
    """`to_hf` for parameters in memory; `source` is named in the model card."""
    import json

    import ml_dtypes

    from bert_jax.data import tokenizer
    from bert_jax.huggingface import files as hf_files
    from bert_jax.huggingface import parity
    from bert_jax.models.bert import BertConfig

    output = epath.Path(output)
    hf_files.check_replaceable(output)
    model = BertConfig(**loaded.config.model)
    task = loaded.config.get("task", "pretraining")  # pretraining configs have no such field
    labels = tuple(loaded.config.get("labels", ()))
    architecture = architecture_of(loaded.params, task)
    kept = {"encoder", *REQUIRED[architecture]}
    if architecture == "BertModel":
        kept.add("pooler")
    # Such as the pooler that came along when a model was made from a larger one.
    if left_out := [part for part in parts_of(loaded.params) if part not in kept]:
        logging.warning(f"{output}: a {architecture} has no {', no '.join(left_out)}: left out")
    stored = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype]
    part_of = {key: part for part, _, key, _ in rows(model)}
    tensors = {
        key: x.astype(stored, copy=False)
        for key, x in to_tensors(loaded.params, model).items()
        if part_of[key] in kept
    }
    config = hf_files.config_json(architecture, model, dtype, loaded.tokenizer.pad_id, task, labels)
    with hf_files.replace_directory(output) as scratch:
        hf_files.write_tensors(scratch, tensors, max_shard_size)
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save(loaded.tokenizer, scratch, model.max_position_embeddings)
        report = parity.compare(loaded, architecture, scratch, dtype)
        if not report.passed:
            raise UserError(f"{output} was not written: {report}")
        card = hf_files.model_card(
            f"A {architecture}, exported by bert_jax from `{source}`.",
            card_facts(loaded, source),
            str(report),
            PIPELINES[architecture],
        )
        (scratch / "README.md").write_text(card)
    return report


def card_facts(loaded: Any, source: str | epath.PathLike) -> list[tuple[str, str]]:
    """(name, value) rows of the model card: sizes, recipe, and the last figures of the run."""
    from bert_jax import metrics
    from bert_jax.runs import checkpoint

    model = loaded.config.model
    facts = [
        ("layers / width / heads", f"{model.num_hidden_layers} / {model.hidden_size} / "
         f"{model.num_attention_heads}"),
        ("vocabulary", f"{model.vocab_size:,} {'un' if loaded.tokenizer.lowercase else ''}cased"),
        ("steps", f"{loaded.step:,}"),
    ]  # fmt: skip
    for name in CARD_FIELDS:
        if loaded.config.get(name) not in (None, "", ()):
            facts.append((name, str(loaded.config[name])))
    for number, phase in enumerate(loaded.config.get("phases", ())):
        facts += [
            (f"phase {number} {name}", ", ".join(str(value).splitlines()))
            for name, value in phase.items()
            if value  # fields left empty are the run's
        ]
    for name, value in loaded.config.get("optimizer", {}).items():
        facts.append((f"optimizer {name}", str(value)))
    workdir, _, _ = checkpoint.path_parts(source)
    last: dict[str, Any] = {}
    for line in metrics.read(workdir):
        if line["step"] <= loaded.step:
            last |= line
    facts += [
        (name, f"{value:.4g}")
        for name, value in last.items()
        if name != "step" and isinstance(value, (int, float))
    ]
    return facts


def _size(text: str) -> int:
    """'5GB' -> 5,000,000,000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 5GB")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bert_jax.convert",
        description="Turns checkpoints of this project into Hugging Face directories, and back.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    to = commands.add_parser("to-hf", help="export a checkpoint as a Hugging Face directory")
    to.add_argument(
        "--checkpoint",
        required=True,
        help="WORKDIR (its last checkpoint, or the one that fine-tuning selected), "
        "WORKDIR/checkpoints/STEP or WORKDIR/best",
    )
    to.add_argument("--output", required=True, help="directory to write")
    to.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    to.add_argument(
        "--max_shard_size", type=_size, default="5GB", help="split larger weights over files"
    )
    to.add_argument(
        "--push_to_hub", default="", metavar="REPO", help="upload it to that repository of the hub"
    )
    back = commands.add_parser("from-hf", help="import a Hugging Face BERT as a WORKDIR")
    back.add_argument("--model", required=True, help="directory or hub name")
    back.add_argument("--output", required=True, help="WORKDIR to write")
    return parser


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.command == "to-hf":
        repository = arguments.push_to_hub
        client = None
        if repository:  # before the export, which takes minutes for a large model
            if files.is_remote(arguments.output):
                raise UserError(f"--push_to_hub needs a local --output, not {arguments.output}")
            client = hub.client(repository)
        report = to_hf(
            arguments.checkpoint, arguments.output, arguments.dtype, arguments.max_shard_size
        )
        print(report)
        print(f"wrote {arguments.output}")
        if client:
            if not report.verified:
                raise UserError(
                    f"{arguments.output} was not compared with transformers, so it is not "
                    "uploaded: pip install 'bert_jax[hf]'"
                )
            print(f"uploaded to {hub.push(client, arguments.output, repository)}")
    else:
        parts = from_hf(arguments.model, arguments.output)
        left_out = [part for part in PARTS if part not in parts]
        print(f"read {', '.join(parts)}; not in {arguments.model}: {', '.join(left_out)}")
        print(f"wrote {arguments.output}")


def cli() -> None:
    run(main)


if __name__ == "__main__":
    sys.exit(cli())
