"""Does transformers compute the same from an exported directory as this project from its params?"""

import contextlib
import dataclasses
import inspect
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.tokenizer import VOCABULARIES, Tokenizer
from bert_jax.huggingface.keys import PRETRAINING, HeadClass
from bert_jax.models import architectures, heads
from bert_jax.models.architectures import EncoderConfig
from bert_jax.runs import workdir as workdirs
from bert_jax.tasks import kinds
from bert_jax.tasks.base import join

# float32 arithmetic in another order, over up to 24 layers: a conversion error is far larger. Of
# values up to 10; it grows with larger ones, such as scores of a regression.
BOUND, UNIT = 1e-4, 10.0
# Real text among the random ids: accents, capitals, CJK, rare words, a pair.
TEXTS = (
    ("The capital of France is Paris.", None),
    ("Crème brûlée, naïve façade; E=mc² — 北京 is 3,000 years old!", None),
    ("How many people live in Berlin?", "Berlin had a population of 3,520,031 in 2015."),
)
# Tokens of the longest text: scores of all pairs of 8,192 would take GiB per layer.
LONGEST = 1024
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """The outcome of a comparison.

    Attributes:
      differences: output -> largest difference (see `differences`); empty if nothing could be
        compared.
      problems: what else is wrong (keys missing in torch, another tokenization).
      setting: versions and inputs, or why nothing was compared.
      rounding: output -> largest change that storing bfloat16 made; empty for float32.
    """

    differences: dict[str, float]
    problems: tuple[str, ...]
    setting: str
    rounding: dict[str, float]

    @property
    def verified(self) -> bool:
        return bool(self.differences)

    @property
    def largest(self) -> float | None:
        """Of all outputs; None if nothing could be compared."""
        return float(np.max([*self.differences.values()])) if self.verified else None

    @property
    def passed(self) -> bool:
        """No difference above BOUND and no problem; true too if nothing could be compared."""
        # Not `largest > BOUND`: NaN must fail.
        return not self.problems and all(x <= BOUND for x in self.differences.values())

    def __str__(self) -> str:
        if not self.verified and not self.problems:
            return f"parity: not verified ({self.setting})"
        listed = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        text = (
            f"parity: largest difference {self.largest:.1e} (at most {BOUND:.0e} "
            f"{'holds' if self.passed else 'DOES NOT HOLD'}): {listed}; {self.setting}"
        )
        if self.rounding:
            rounded = ", ".join(f"{name} {value:.1e}" for name, value in self.rounding.items())
            text += f"; rounding to bfloat16 itself changed: {rounded}"
        return "; ".join([text, *self.problems])


def inputs(model: EncoderConfig, tokenizer: Tokenizer) -> list[Batch]:
    """Two batches: text and random ids with padding and two segments; random ids, a long text."""
    rng = np.random.default_rng(0)
    longest = min(model.max_length, LONGEST)
    width = min(longest, 48)
    batches = [
        {name: np.zeros((batch, length), np.int32) for name in MODEL_INPUTS}
        for batch, length in ((len(TEXTS) + 4, width), (1, longest))
    ]
    for row, (first, second) in enumerate(TEXTS):
        pair = None if second is None else tokenizer.encode(second)
        ids, segments = join(tokenizer, tokenizer.encode(first), pair, width)
        for name, x in zip(MODEL_INPUTS, (ids, [1] * len(ids), segments), strict=True):
            batches[0][name][row, : len(x)] = x
        batches[0]["input_ids"][row, len(ids) :] = tokenizer.pad_id
    random_rows = [(0, len(TEXTS) + i, length) for i, length in enumerate((width, 31, 12, 5))]
    for number, row, most in (*random_rows, (1, 0, longest)):
        length = min(most, longest)
        values = (
            rng.integers(0, model.vocab_size, length),
            np.ones(length),
            np.arange(length) >= rng.integers(1, length),
        )
        for name, array in zip(MODEL_INPUTS, values, strict=True):
            batches[number][name][row, :length] = array
    for arrays in batches:  # a model may have one segment alone
        types = arrays["token_type_ids"]
        np.minimum(types, model.type_vocab_size - 1, out=types)
    return batches


def flax_outputs(
    params: Any, model: EncoderConfig, task: str, batch: Batch
) -> dict[str, np.ndarray]:
    """Output name -> float32 array of our model, on every position, vocabulary unpadded.

    `params` may lack the pooler or a pretraining head: what hangs on it is skipped.
    """
    model = architectures.computed_as(
        model, dtype="float32", attention="xla", scan_layers=False, remat="none"
    )
    arguments = tuple(batch[name] for name in MODEL_INPUTS)

    def apply(module: Any, params: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # accelerators round matmuls otherwise
            return jax.device_get(jax.jit(module.apply)({"params": params}, *arguments))

    if task != PRETRAINING:
        num_labels = params["classifier"]["bias"].shape[0] if "classifier" in params else 0
        if task == "multiple_choice":  # the rows are the choices of one example
            arguments = tuple(x[None] for x in arguments)
        return {"logits": apply(kinds.make_module(task, model, num_labels), params)}
    module = heads.PretrainingModel(model)
    # Zeros stand in for the parts that are not there; nothing computed from them is returned.
    output = apply(module, heads.with_zeros(params, module))
    result = {"hidden": output.hidden_BLD}
    architecture = architectures.of(model)
    of_encoder = params[architecture.prefix]
    if "pooler" in of_encoder:
        pooled_BD = output.pooled_BD
        if pooled_BD is None:
            _, pooled_BD = apply(architecture.encoder(model), of_encoder)
        result["pooled"] = pooled_BD
    if "mlm_transform" in params:
        result["mlm_logits"] = output.mlm_logits_BMV[..., : model.vocab_size]
    if "nsp_classifier" in params:
        result["nsp_logits"] = output.nsp_logits_B2
    return result


def torch_outputs(model: Any, head_class: HeadClass, batch: Batch) -> dict[str, np.ndarray]:
    """The same names for a transformers model in torch, in evaluation mode."""
    import torch

    taken = inspect.signature(model.forward).parameters  # transformers 5 drops others silently
    tensors = {
        name: torch.from_numpy(x.astype(np.int64)) for name, x in batch.items() if name in taken
    }
    if "multiple_choice" in head_class.tasks:
        tensors = {key: x[None] for key, x in tensors.items()}
    with torch.no_grad():
        output, result = model(**tensors), {}
        if PRETRAINING in head_class.tasks:
            # Not hidden_states[-1], which is another state in transformers 4's ModernBERT.
            result["hidden"] = model.base_model(**tensors).last_hidden_state
            if (pooler := getattr(model.base_model, "pooler", None)) is not None:
                result["pooled"] = pooler(result["hidden"])
    for ours, theirs in head_class.outputs:
        values = [getattr(output, name) for name in theirs]
        result[ours] = values[0] if len(values) == 1 else torch.stack(values, dim=-1)
    return {name: x.float().numpy() for name, x in result.items()}


def at_tokens(outputs: dict[str, np.ndarray], batch: Batch) -> dict[str, np.ndarray]:
    """The outputs with zeros at padding: nobody uses what is there, and kernels differ in it."""
    is_token_BL1 = batch["attention_mask"][..., None] > 0
    return {
        name: x * is_token_BL1 if x.ndim == 3 and x.shape[:2] == is_token_BL1.shape[:2] else x
        for name, x in outputs.items()
    }


def differences(
    ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Largest difference of every output that both have, over the batches.

    Of outputs that reach beyond UNIT it is the difference as a share of that many UNITs.
    """

    def difference(name: str) -> float:
        pairs = [(x[name], y[name]) for x, y in zip(ours, theirs, strict=True)]
        # numpy's maximum: NaN stays NaN.
        largest = np.max([np.max(np.abs(y)) for _, y in pairs])
        return float(np.max([np.max(np.abs(x - y)) for x, y in pairs]) / max(1, largest / UNIT))

    return {name: difference(name) for name in ours[0] if name in theirs[0]}


def compare(
    loaded: workdirs.Loaded, head_class: HeadClass, directory: pathlib.Path, dtype: str
) -> ParityReport:
    """Compares `loaded` (a `workdirs.Loaded`) with what transformers reads from `directory`.

    A bfloat16 directory is compared, computing in float32, with our parameters rounded alike: the
    bound then tests the conversion as strictly; what the rounding changed is reported beside it.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        return ParityReport(
            {}, (), f"{error.name} is not installed: pip install 'bert_jax[hf]' to compare", {}
        )
    model = architectures.make_config(loaded.config.model)
    task = loaded.config.get("task", PRETRAINING)
    params, rounding = loaded.params, {}
    batches = inputs(model, loaded.tokenizer)
    if dtype == "bfloat16":
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), params)
        before = [flax_outputs(loaded.params, model, task, batch) for batch in batches]
    ours = [flax_outputs(params, model, task, batch) for batch in batches]
    if dtype == "bfloat16":
        rounding = differences(ours, before)
    arguments = {}
    if not head_class.parts and "pooler" not in params[architectures.of(model).prefix]:
        arguments = {"add_pooling_layer": False}
    with _quiet(transformers):
        network, info = getattr(transformers, head_class.name).from_pretrained(
            str(directory),
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **arguments,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, info[kind]))[:5])}"
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")
        if info[kind]
    ]
    labels = list(loaded.config.get("labels", []))
    if labels and labels != list(network.config.id2label.values()):
        problems.append(f"transformers names the labels {network.config.id2label}, not {labels}")
    width = batches[0]["input_ids"].shape[1]
    for (first, second), ids_L in zip(TEXTS, batches[0]["input_ids"], strict=False):
        read = tokenizer(first, second, truncation=True, max_length=width)["input_ids"]
        if read != ids_L[: len(read)].tolist() or any(ids_L[len(read) :] != tokenizer.pad_token_id):
            problems.append(f"transformers tokenizes {first!r} otherwise")
    with _quiet(transformers):
        source = _source_tokenizer(transformers, loaded)
        for text in _texts(loaded.tokenizer) if source else []:
            if source(text, add_special_tokens=False)["input_ids"] != loaded.tokenizer.encode(text):
                where = loaded.config.imported_from
                problems.append(f"the tokenizer of {where} gives other ids for {text[:60]!r}")
    theirs = [torch_outputs(network.eval(), head_class, batch) for batch in batches]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    ours, theirs = (
        [at_tokens(outputs, batch) for outputs, batch in zip(side, batches, strict=True)]
        for side in (ours, theirs)
    )
    return ParityReport(
        differences=differences(ours, theirs),
        problems=tuple(problems),
        setting=(
            f"float32, {tokens:,} tokens of text and random ids, with and without padding, against "
            f"transformers {transformers.__version__} on torch {torch.__version__}"
        ),
        rounding=rounding,
    )


def _source_tokenizer(transformers: Any, loaded: workdirs.Loaded) -> Any:
    """The tokenizer of the directory that a model was imported from; None if it is not there.

    What we write was made by our tokenizer, and would prove it right whatever it computes.
    """
    directory = pathlib.Path(loaded.config.get("imported_from", ""))
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if not names & {*VOCABULARIES}:
        return None
    if "vocab.txt" not in names or "tokenizer.json" in names:
        return transformers.AutoTokenizer.from_pretrained(str(directory))
    # A vocabulary whose case is not known: transformers takes it for uncased.
    case = {"do_lower_case": loaded.tokenizer.lowercase}
    return transformers.BertTokenizer.from_pretrained(str(directory), **case)


def _texts(tokenizer: Tokenizer) -> list[str]:
    """Texts of which all that a tokenizer may do otherwise makes other ids."""
    pieces = " ".join(token for token in tokenizer.vocab if token)
    added = [f"x {token.content} x{token.content}y" for token in tokenizer.added]
    return [*(text for pair in TEXTS for text in pair if text), *added, pieces]


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and loading reports: the report here replaces them."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
