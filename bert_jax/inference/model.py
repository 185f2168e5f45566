"""A trained model, ready to use: what `bert_jax.load` returns, and what `predict` runs.

N texts, L length, D hidden width, H heads.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from bert_jax import loading, screen
from bert_jax.cli import UserError
from bert_jax.huggingface import config_json
from bert_jax.huggingface import files as hf_files
from bert_jax.inference import encoding, predictions
from bert_jax.inference.forward import Forward
from bert_jax.inference.predictions import Record
from bert_jax.runs import workdir as workdirs

CHUNK = 1024  # inputs that are sorted by length together
# Methods that need a head -> the tasks whose heads do.
TASKS = {
    "answer": ("question_answering",),
    "choose": ("multiple_choice",),
    "classify": ("text_classification", "text_regression", "multi_label_classification"),
    "tag": ("token_classification",),
    "zero_shot": ("text_classification",),
}


def load(
    source: str | epath.PathLike,
    *,
    dtype: str = "float32",
    batch_size: int = 32,
    max_seq_length: int | None = None,
    progress: bool = False,
) -> "Model":
    """Loads a model to encode, embed, classify, … with.

        model = bert_jax.load("runs/tiny")
        model.fill_mask(["Paris is the [MASK] of France."])[0]["masks"][0]

    Args:
      source: WORKDIR of a pretraining or fine-tuning, a checkpoint in one, a Hugging Face
        directory, or a name on its hub. Of several fine-tunings it is the best.
      dtype: of the activations, "float32" or "bfloat16".
      batch_size: most texts per call of the compiled program.
      max_seq_length: tokens that are read of a text; by default as many as the model was
        fine-tuned with, else as many as it takes.
      progress: whether stderr shows how far long inputs are: a bar on a terminal, else a line now
        and then.

    Raises:
      UserError: no model there, or one that this project does not compute; or `max_seq_length` is
        more than the model's positions.
    """
    return Model(read(source), dtype, batch_size, max_seq_length, progress)


def read(source: str | epath.PathLike) -> workdirs.Loaded:
    """The parts of a model; of a fine-tuning, of the epoch that it selected, with its settings.

    Raises:
      UserError: as `loading.load_parts`.
    """
    place, run = _place(source)
    parts = loading.load_parts(place)
    if run is None:
        return parts
    run.update(parts.config)
    return dataclasses.replace(parts, config=run)


def settings(source: str | epath.PathLike) -> ml_collections.ConfigDict:
    """What `Model.settings` is, read without the parameters.

    Raises:
      UserError: there is no model.
    """
    place, run = _place(source)
    if run is not None:
        return run
    if workdirs.is_workdir(place):
        return workdirs.read_config(workdirs.path_parts(place)[0])
    path = hf_files.locate(place) / "config.json"
    found = config_json.read(path).settings if path.exists() else {}
    return ml_collections.ConfigDict(found)


def mask(source: str | epath.PathLike) -> str:
    """The mask of a model's tokenizer, read without the parameters."""
    return loading.load_tokenizer(_place(source)[0]).roles.mask


def _place(
    source: str | epath.PathLike,
) -> tuple[str | epath.PathLike, ml_collections.ConfigDict | None]:
    """Where to load from, and the config of the run if that is a fine-tuning's export."""
    path = epath.Path(source)
    workdir = workdirs.best_run(path) or path
    if (workdir / workdirs.CONFIG_FILE).exists() and (path / "hf" / "config.json").exists():
        run = workdirs.read_config(workdir)
        if "task" in run:
            return path / "hf", run
    return source, None


class Model(Forward):
    """A model on the device, and its tokenizer; `load` makes one.

    The methods take lists and return plain Python or numpy, in the order of the inputs. Texts are
    sorted by length and batched inside; longer ones than `max_seq_length` are cut, or read in
    overlapping windows (`answer`) or one after the other (`tag`). Methods that the model's head
    does not allow raise UserError.

    Attributes:
      config: the encoder's sizes.
      params: nested dict of arrays; what a checkpoint lacks (a pooler, a head) is not in it.
      tokenizer: see `bert_jax.data.tokenizer.Tokenizer`.
      module: the Flax module of encoder and head: `module.apply({"params": params}, input_ids,
        attention_mask, token_type_ids)`.
      architecture: the encoder's name in `bert_jax.models.architectures`.
      settings: of the run that made the model: a fine-tuning's config, or what an export keeps.
      task: "pretraining", or that of the head, as "text_classification".
      labels: the names of the head's outputs; () where they have none.
      max_seq_length: tokens that are read of a text.
      progress: see `load`.
    """

    def __init__(
        self,
        parts: workdirs.Loaded,
        dtype: str = "float32",
        batch_size: int = 32,
        max_seq_length: int | None = None,
        progress: bool = False,
    ):
        super().__init__(parts, dtype, batch_size, max_seq_length)
        self.progress = progress

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> encoding.Encoded:
        """The encoder's states of all texts, padded to the longest; see `encoding.encode`."""
        records = records_of(text=texts, text_pair=pairs)
        return encoding.encode(self, records, output_hidden_states, output_attentions)

    def embed(
        self, texts: Sequence[str], pooling: str | None = None, normalize: bool | None = None
    ) -> np.ndarray:
        """A vector per text, float32[N, D].

        Args:
          pooling: "cls", the first state; "mean" or "max" over the text's; by default as the model
            says, else "mean".
          normalize: to length 1; by default as the model says, else not.
        """
        records = records_of(text=texts)
        found = self._list("embed", records, pooling=pooling, normalize=normalize)
        return np.stack(found) if found else np.zeros((0, self.config.hidden_size), np.float32)

    def classify(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        temperature: float = 1.0,
    ) -> list[Record]:
        """[{"prediction": label, "scores": {label: probability}}, …].

        Of a regression the prediction is a number, of several labels per text a list of them.

        Args:
          temperature: of classes: above 1 probabilities are less sure, below 1 surer; the
            predictions stay. `bert_jax.explain.probabilities` fits it.
        """
        records = records_of(text=texts, text_pair=pairs)
        return self._list("classify", records, temperature=temperature)

    def zero_shot(
        self, texts: Sequence[str], labels: Sequence[str], template: str = predictions.TEMPLATE
    ) -> list[Record]:
        """Which of any labels fits: [{"prediction": label, "scores": {label: probability}}, …].

        By a model of textual entailment: does the text entail the template with the label in it
        (Yin et al. 2019, https://arxiv.org/abs/1909.00161)?
        """
        records = records_of(text=texts)
        return self._list("zero_shot", records, labels=labels, template=template)

    def fill_mask(self, texts: Sequence[str], top_k: int = 5) -> list[Record]:
        """The likeliest tokens: [{"masks": [[{"token", "score"}, … top_k] per mask]}, …]."""
        return self._list("fill_mask", records_of(text=texts), top_k=top_k)

    def tag(self, texts: Sequence[str | Sequence[str]]) -> list[Record]:
        """The labels of words, and the entities that they make.

        Args:
          texts: lists of words; or texts, whose words are as the tokenizer splits them.

        Returns:
          of each "labels" and "scores" of its words, and, where the labels are of entities,
          "entities": {"type", "start", "end", "text", "score"}. Of a list start and end count
          words; of a text they count characters, and its words come with it ("tokens", "offsets").
        """
        records = [
            {"text": x} if isinstance(x, str) else {"tokens": list_of("words", x)}
            for x in list_of("texts", texts)
        ]
        return self._list("tag", records)

    def answer(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        top_k: int = 5,
        max_answer_length: int | None = None,
        null_threshold: float | None = None,
    ) -> list[Record]:
        """[{"prediction": text, "n_best": [{"text", "start", "end", "score"}, … top_k]}, …].

        Args:
          max_answer_length: in tokens; by default as the model was fine-tuned, else 30.
          null_threshold: the answer is "" if its score is higher than the best span's by more than
            this; infinity: never. By default as the model was fine-tuned.
        """
        return self._list(
            "answer",
            records_of(question=questions, context=contexts),
            top_k=top_k,
            max_answer_length=max_answer_length,
            null_threshold=null_threshold,
        )

    def choose(
        self,
        contexts: Sequence[str],
        choices: Sequence[Sequence[str]],
        beginnings: Sequence[str] | None = None,
    ) -> list[Record]:
        """Which choice goes with a context: [{"prediction": its index, "scores": [float, …]}, …].

        Args:
          choices: two or more of every context.
          beginnings: what all choices of a context begin with.
        """
        records = records_of(context=contexts, choices=choices, beginning=beginnings)
        return self._list("choose", records)

    def _list(self, command: str, records: Sequence[Record], **options: Any) -> list[Any]:
        return list(self.predictions(command, records, len(records), **options))

    def predictions(
        self, command: str, records: Iterable[Record], total: int | None = None, **options: Any
    ) -> Iterator[Any]:
        """The results of `records` in their order, computed a chunk at a time.

        Args:
          command: the name of a method, as "embed".
          records: its inputs as objects: "text" (and "text_pair"); "tokens"; "question" and
            "context"; "context", "choices" (and "beginning").
          total: their number, for the progress bar.
          options: the method's other arguments.

        Raises:
          UserError: at once: the model's head does not allow it.
        """
        self.check(command, **options)
        return self._chunks(command, iter(records), total, options)

    def _chunks(
        self, command: str, records: Iterator[Record], total: int | None, options: dict[str, Any]
    ) -> Iterator[Any]:
        function = predictions.COMMANDS[command]
        done, started = 0, time.monotonic()
        with screen.Stage(command.replace("_", "-"), total or 0, self.progress) as stage:
            while chunk := list(itertools.islice(records, CHUNK)):
                yield from function(self, chunk, **options)
                done += len(chunk)
                speed = screen.number(done / max(time.monotonic() - started, 1e-9))
                count = f"{done:,} of {total:,} inputs" if total else f"{done:,} inputs"
                stage.update(done, [count, screen.ETA, f"{speed} inputs/s"])

    def check(self, command: str, **options: Any) -> None:
        """Raises UserError if the model cannot do what the method of that name does, or not so."""
        tasks = TASKS.get(command)
        if tasks and self.task not in tasks:
            raise UserError(
                f"the model has no head to {command.replace('_', '-')} with (it is a {self.task} "
                f"model): fine-tune one for {tasks[0]} with bert_jax.finetune"
            )
        for name in ("top_k", "max_answer_length"):
            value = options.get(name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: expected at least 1")
        temperature = options.get("temperature", 1.0)
        if not 0 < temperature < float("inf"):
            raise UserError(f"temperature is {temperature}: expected a number above 0")
        if temperature != 1 and self.task != "text_classification":
            raise UserError(f"a temperature is for text classification, not for {self.task}")
        if command == "fill_mask" and "mlm_transform" not in self.params:
            raise UserError("the model has no MLM head: fill-mask needs a pretraining model")
        if command == "zero_shot":
            predictions.entailment(self.labels)
            if "{}" not in options.get("template", "{}"):
                raise UserError(f"template={options['template']!r} has no {{}} for the label")

    def check_masks(self, records: Iterable[Record]) -> None:
        """Raises UserError for a text whose mask is not among the tokens that are read."""
        remaining = iter(records)
        while chunk := list(itertools.islice(remaining, CHUNK)):
            predictions.mask_rows(self, chunk)


def records_of(**columns: Iterable[Any] | None) -> list[Record]:
    """Lists of equal lengths as objects; None for one that is not given.

        records_of(text=["a", "b"], text_pair=None) -> [{"text": "a"}, {"text": "b"}]

    Raises:
      UserError: no lists, of different lengths, or of something else than texts.
    """
    given = {name: list_of(name, x) for name, x in columns.items() if x is not None}
    lengths = {name: len(values) for name, values in given.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise UserError(f"expected lists of one length, found {found}")
    for name, values in given.items():
        for i, value in enumerate(values):
            if name != "choices" and not isinstance(value, str):
                raise UserError(f"{name} number {i} is {value!r:.60}, expected a text")
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def list_of(name: str, values: Any) -> list[Any]:
    """`values` as a list; UserError for a text, or what is no collection."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UserError(f"{name} is {values!r:.60}, expected a list of them")
    return list(values)
