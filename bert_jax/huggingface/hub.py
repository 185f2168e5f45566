"""Uploads of exports to the Hugging Face hub."""

from typing import TYPE_CHECKING, Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError, brief

if TYPE_CHECKING:  # it imports JAX
    from bert_jax.huggingface.parity import ParityReport


def client(repository: str, directory: str | epath.PathLike) -> Any:
    """A client of the Hugging Face hub that may write.

    Raises:
      UserError: `directory` is not local, huggingface_hub is not installed, or there is no token.
    """
    if files.is_remote(directory):
        raise UserError(f"--push_to_hub needs a local --output, not {directory}")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"--push_to_hub={repository} needs: pip install 'bert_jax[hf]'") from None
    if not huggingface_hub.get_token():
        raise UserError(
            f"--push_to_hub={repository} needs a token of the Hugging Face hub that may write: run "
            "`hf auth login`, or set HF_TOKEN"
        )
    return huggingface_hub.HfApi()


def push(
    hub_client: Any,
    report: "ParityReport",
    directory: str | epath.PathLike,
    repository: str,
    public: bool = False,
) -> str:
    """Uploads an export to a repository of the hub; a line with its files and its address.

    Args:
      report: of the export.
      public: a repository that is made here can be read by all; otherwise by its owner alone.

    Raises:
      UserError: nothing says that the export is right; the hub refused, or could not be reached.
    """
    if not report.verified:
        raise UserError(
            f"{directory} was not compared with transformers, so it is not uploaded: "
            "pip install 'bert_jax[hf]'"
        )
    try:
        hub_client.create_repo(repository, private=not public, exist_ok=True)
        hub_client.upload_folder(
            repo_id=repository,
            folder_path=str(directory),
            commit_message="Exported by bert_jax",
            # Of an upload before, in one file or in several: transformers would load what it finds.
            delete_patterns=["model*.safetensors", "model.safetensors.index.json"],
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"{directory} is written, and was not uploaded to {repository} ({brief(error)})"
        ) from None
    names = ", ".join(sorted(path.name for path in epath.Path(directory).iterdir()))
    return f"uploaded {names} to https://huggingface.co/{repository}"
