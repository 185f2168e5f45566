"""The parts of a model (config, parameters, tokenizer), wherever it lies."""

from etils import epath

from bert_jax.huggingface import load
from bert_jax.runs import checkpoint
from bert_jax.runs import workdir as workdirs


def load_parts(source: str | epath.PathLike) -> workdirs.Loaded:
    """The parameters on the host, with config and tokenizer, of any model.

    Args:
      source: WORKDIR (the checkpoint that a fine-tuning selected, else the last one),
        WORKDIR/checkpoints/STEP, WORKDIR/best, a Hugging Face directory, or a name on its hub.

    Raises:
      UserError: as `checkpoint.load` and `huggingface.load.read`.
    """
    return checkpoint.load(source) if workdirs.is_workdir(source) else load.read(source)
