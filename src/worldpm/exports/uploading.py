"""`worldpm push`: a finished folder on the Hugging Face hub, with its card."""

import logging
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from worldpm.errors import ConfigError, WorldPMError, first_line
from worldpm.evaluation.results import read_results
from worldpm.model.weight_files import CONFIG
from worldpm.options.push import PushOptions
from worldpm.storage.manifest import read_manifest

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
RESULTS_CARD = """---
pretty_name: {name}
tags: [reward-model, evaluation, worldpm]
---
# {name}

Results of preference models: every reward in `rewards.parquet`, the items in `items.parquet`, all
measures in `metrics.json`, tables and figures beside them. `worldpm.read_results` reads them.

{table}

`low` and `high` are the ends of the 95 % interval over prompts; `longer` is the accuracy of a judge
that prefers the longer response.

Command: `{command}`
"""


def run(options: PushOptions) -> None:
    """Upload the folder.

    Raises:
        ConfigError: If the folder is not finished, or not of a step that can be uploaded, or the
            name is not that of a repository.
        WorldPMError: If the hub cannot be reached or refuses. The folder stays as it is.
    """
    folder, repository = options.folder, options.repository
    kind = _kind(folder)
    # A folder of results has no card of its own, and its files must not change
    card = None if (folder / CARD_FILE).exists() else _results_card(folder)
    api = HfApi()
    try:
        api.create_repo(repository, repo_type=kind, private=not options.public, exist_ok=True)
        if card is not None:
            api.upload_file(
                path_or_fileobj=card.encode(),
                path_in_repo=CARD_FILE,
                repo_id=repository,
                repo_type=kind,
            )
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type=kind,
            commit_message=options.message or f"Upload {folder.resolve().name}",
        )
    except HFValidationError as error:
        raise ConfigError(f"{repository}: {_reason(error)}. Set OWNER/NAME.") from error
    except Exception as error:  # the library's HTTP client, and so its errors, differ by release
        raise WorldPMError(
            f"{repository}: {_reason(error)}. {folder} is unchanged. Log in with `hf auth login` or"
            " set HF_TOKEN, then run the command again."
        ) from error
    logger.info("%s: uploaded to %s", folder, repository)


def _kind(folder: Path) -> Literal["model", "dataset"]:
    """The kind of the repository for a folder."""
    manifest = read_manifest(folder)
    if manifest.step == "train":
        raise ConfigError(
            f"{folder}: a checkpoint has no card yet. Write one with `worldpm export {folder} --to"
            " model --out FOLDER`, then push FOLDER."
        )
    if manifest.step in ("group", "evaluate"):
        return "dataset"
    if manifest.step != "export":
        raise ConfigError(
            f"{folder}: is a folder of `worldpm {manifest.step}`. Name one of export, group or"
            " evaluate."
        )
    if not (folder / CARD_FILE).exists():
        raise ConfigError(f"{folder}: has no card. Push a folder of --to model or --to pairs.")
    return "model" if (folder / CONFIG).exists() else "dataset"


def _results_card(folder: Path) -> str:
    manifest = read_manifest(folder, made_by="evaluate")
    return RESULTS_CARD.format(
        name=folder.resolve().name,
        table=read_results(folder).table(),
        command=manifest.command,
    )


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".")
