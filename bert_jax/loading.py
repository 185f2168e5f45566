"""The parts of a model (config, parameters, tokenizer), wherever it lies."""

from etils import epath

from bert_jax.data import tokenizer
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.huggingface import load
from bert_jax.models import architectures
from bert_jax.models.architectures import EncoderConfig
from bert_jax.runs import checkpoint
from bert_jax.runs import workdir as workdirs


def load_config(source: str | epath.PathLike) -> EncoderConfig:
    """The encoder's config of any model, without its parameters; `source` as in `load_parts`."""
    if workdirs.is_workdir(source):
        workdir, _, _ = workdirs.path_parts(source)
        return architectures.make_config(workdirs.read_config(workdir).model)
    return load.read_config(source)


def load_tokenizer(source: str | epath.PathLike) -> Tokenizer:
    """The tokenizer of any model, without its parameters; `source` as in `load_parts`."""
    if workdirs.is_workdir(source):
        workdir, _, _ = workdirs.path_parts(source)
        return tokenizer.load(workdir / workdirs.TOKENIZER)
    return load.read_tokenizer(source)


def load_parts(source: str | epath.PathLike) -> workdirs.Loaded:
    """The parameters on the host, with config and tokenizer, of any model.

    Args:
      source: WORKDIR (the checkpoint that a fine-tuning selected, else the last one),
        WORKDIR/checkpoints/STEP, WORKDIR/best, a Hugging Face directory, or a name on its hub.

    Raises:
      UserError: as `checkpoint.load` and `huggingface.load.read`.
    """
    return checkpoint.load(source) if workdirs.is_workdir(source) else load.read(source)
