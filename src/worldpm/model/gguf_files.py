"""GGUF files, in which llama.cpp stores a language model: config, tokenizer and weights in one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils.import_utils import is_gguf_available

from worldpm import extras
from worldpm.errors import CheckpointError, ConfigError, first_line

SUFFIX = ".gguf"
HEAD = "cls."
"""llama.cpp's name for heads of classifiers."""


def check(path: Path) -> None:
    """Reject a file that cannot be read here, or that is not a language model.

    Raises:
        ConfigError: If the package that reads it is not installed.
        CheckpointError: If it is damaged, or has a head, which transformers would not read.
    """
    if not is_gguf_available():
        raise ConfigError(f"{path}: gguf is not installed. {extras.advice('gguf')}")

    try:
        _, names = read_gguf_metadata(str(path))
    # the parser of a damaged file may raise any error
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable GGUF file ({first_line(error)}). Get the file again."
        ) from error

    if any(name.startswith(HEAD) for name in names):
        raise CheckpointError(
            f"{path}: its head ({HEAD}*) cannot be read from a GGUF file. Name the folder of"
            " safetensors that the file was made from."
        )


def without_head(path: Path) -> CheckpointError:
    """The error for a GGUF file where a reward model is needed."""
    return CheckpointError(
        f"{path}: a GGUF file of a language model, without a reward head. Make a reward model from"
        " it with `worldpm train --model`."
    )


@contextmanager
def alone(path: Path) -> Iterator[dict[str, str]]:
    """Keywords of transformers' `from_pretrained` for the file in a folder without other files,
    because transformers would use the tokenizer or the adapter of another model there."""
    with TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield {"pretrained_model_name_or_path": folder, "gguf_file": path.name}


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that transformers does not treat as quantized, so that it can be
    trained and saved."""
    config = model.config
    del config.quantization_config
    copy: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype)  # type: ignore[no-untyped-call]
    copy.load_state_dict(model.state_dict(), assign=True)
    return copy
