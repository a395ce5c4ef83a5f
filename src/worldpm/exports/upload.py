"""Upload of a finished folder to the Hugging Face hub."""

import logging
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from worldpm.errors import ConfigError, WorldPMError

logger = logging.getLogger(__name__)


def push(folder: Path, repository: str, *, kind: str) -> None:
    """Upload a folder to `OWNER/NAME`, a `model` or a `dataset`. A repository that does not exist
    is made, private.

    Raises:
        ConfigError: If the name is not that of a repository.
        WorldPMError: If the hub cannot be reached or refuses. The folder stays as it is.
    """
    api = HfApi()
    try:
        api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type=kind)
    except HFValidationError as error:
        raise ConfigError(f"--push {repository}: {_first_line(error)}. Set OWNER/NAME.") from error
    except Exception as error:  # the library's HTTP client, and so its errors, differ by release
        raise WorldPMError(
            f"--push {repository}: {_first_line(error)}. {folder} is complete. Log in with"
            " `hf auth login`, then run the command again to upload it."
        ) from error
    logger.info("%s: uploaded to %s", folder, repository)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
