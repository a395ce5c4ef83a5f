"""Hidden states after the frozen layers of a model, computed once and kept on disk.

Training can leave the embeddings and the first layers unchanged; their states then never change.
Later epochs, validations, and other models with the same frozen layers read them.

The states of a prompt do not depend on its responses, and those of a response depend only on the
prompt and the response. Each is one tensor, named by a hash of the tokens up to its end. The files
`FOLDER/KEY/*.safetensors` hold them; KEY is a hash of the frozen weights and the compute type.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, cast
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from worldpm.errors import ConfigError
from worldpm.model.encoder import EncodedGroup
from worldpm.model.shared_prefix import plan_row, run_row

logger = logging.getLogger(__name__)

FILE_BYTES = 64 * 2**20
"""Size at which states go to disk; a killed run loses at most as many."""

NOT_OF_LAYERS = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "label2id",
    "pad_token_id",
    "problem_type",
    "transformers_version",
    "use_cache",
}
"""Keys of a config that do not change the states. They differ between a language model and the
reward models that were trained from it."""

LayerOutput = Tensor | tuple[Tensor, ...]


def freeze(backbone: PreTrainedModel, count: int) -> None:
    """Exclude the embeddings and the first `count` layers from training.

    Raises:
        ConfigError: If the model has fewer layers, or its layers cannot be found.
    """
    layers = _layers_of(backbone)
    if count > len(layers):
        raise ConfigError(
            f"--freeze-layers {count}: the model has only {len(layers)} layers. Use at most"
            f" {len(layers)}, which trains the last norm and the head."
        )
    for parameter in _frozen_weights(backbone, count).values():
        parameter.requires_grad_(False)


def _layers_of(backbone: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a model, in order."""
    count = backbone.config.get_text_config().num_hidden_layers
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            layers = list(module)
            if all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
                return layers
    raise ConfigError(
        f"--freeze-layers: its {count} layers cannot be found in a model of type"
        f" {backbone.config.model_type}. Leave --freeze-layers out, or use --lora-rank."
    )


def _frozen_weights(backbone: PreTrainedModel, count: int) -> dict[str, nn.Parameter]:
    """The weights up to the last frozen layer, by name."""
    of_layers = {weight for layer in _layers_of(backbone)[:count] for weight in layer.parameters()}
    weights = dict(backbone.named_parameters())
    # embeddings, their projections and norms are registered before the layers
    last = max(index for index, weight in enumerate(weights.values()) if weight in of_layers)
    return dict(list(weights.items())[: last + 1])


class _Segment(NamedTuple):
    """A prompt, or a response after its prompt."""

    key: str
    tokens: int


def _segments(group: EncodedGroup) -> list[_Segment]:
    """The prompt and the responses of a group, in the order of a row."""
    prompt = np.asarray(group.prefix, dtype=np.int64).tobytes()
    segments = [_Segment(_hash(prompt), len(group.prefix))]
    for suffix in group.suffixes:
        response = np.asarray(suffix, dtype=np.int64).tobytes()
        # with its length, a prompt and its response differ from a longer prompt
        key = _hash(b"%d:" % len(prompt) + prompt + response)
        segments.append(_Segment(key, len(suffix)))
    return segments


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


class FrozenStates:
    """The states of the first layers of one model.

    Several processes can use a folder at once. Each writes its own files, and reads those that are
    there when it starts.
    """

    def __init__(
        self, backbone: PreTrainedModel, count: int, folder: Path, compute_type: torch.dtype
    ) -> None:
        """`count` layers are frozen. `folder` may also hold the states of other models."""
        self.count = count
        self._backbone = backbone
        self._layers = _layers_of(backbone)
        self._returns_tuple = False
        """Whether a layer returns its states as a tuple; known after the first run."""

        self._folder = folder / _key_of(backbone, count, compute_type)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[Path, safe_open] = {}
        self._file_of: dict[str, Path] = {}
        """The file of each segment on disk, by key."""
        self._unwritten: dict[str, Tensor] = {}
        """The states of segments that are not on disk yet, by key."""
        for path in sorted(self._folder.glob("*.safetensors")):
            self._index(path)

    def _index(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            logger.warning("%s: not readable (%s), so its states are computed again", path, error)
            return
        self._open[path] = file
        self._file_of |= dict.fromkeys(file.keys(), path)  # type: ignore[no-untyped-call]

    @contextmanager
    def given_to(self, groups: Sequence[EncodedGroup]) -> Iterator[None]:
        """A context in which the model, run on the row of these groups, skips its frozen layers and
        goes on from their states."""
        states = self.of(groups)

        def give(hidden: Tensor) -> Tensor:
            return states.to(hidden.device)

        *lower, last = self._layers[: self.count]
        # the lower layers pass something on, which the last one replaces
        with self._replaced(lower), self._replaced([last], give):
            yield

    def of(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """The states of the row of these groups, shape (1, T, width), without gradients. Those that
        are missing are computed and kept."""
        segments = [_segments(group) for group in groups]
        missing = [
            group
            for group, of_group in zip(groups, segments, strict=True)
            if not all(self._has(segment.key) for segment in of_group)
        ]
        if missing:
            self._compute(missing)

        parts = [self._read(segment.key) for of_group in segments for segment in of_group]
        if sum(part.nbytes for part in self._unwritten.values()) >= FILE_BYTES:
            self.write()
        return torch.cat(parts)[None]

    def _has(self, key: str) -> bool:
        return key in self._file_of or key in self._unwritten

    def _read(self, key: str) -> Tensor:
        if key in self._unwritten:
            return self._unwritten[key]
        file = self._open[self._file_of[key]]
        tensor: Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
        return tensor

    def _compute(self, groups: Sequence[EncodedGroup]) -> None:
        segments = [segment for group in groups for segment in _segments(group)]
        states = self._run(groups)[0].cpu()
        parts = torch.split(states, [segment.tokens for segment in segments])
        for segment, part in zip(segments, parts, strict=True):
            # a copy, because a view would keep the whole row in memory
            self._unwritten[segment.key] = part.clone()

    def _run(self, groups: Sequence[EncodedGroup]) -> Tensor:
        """Run the frozen layers on a row; the output of the last one, shape (1, T, width)."""
        outputs: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: LayerOutput) -> None:
            self._returns_tuple = isinstance(output, tuple)
            outputs.append(output[0] if isinstance(output, tuple) else output)

        embeddings = self._backbone.get_input_embeddings().weight
        plan = plan_row(groups, device=cast(Tensor, embeddings).device)
        hook = self._layers[self.count - 1].register_forward_hook(keep)
        trained = self._layers[self.count :]
        try:
            with torch.no_grad(), self._replaced(trained):
                run_row(self._backbone, plan, skipped=len(trained))
        finally:
            hook.remove()
        return outputs[0]

    @contextmanager
    def _replaced(
        self, layers: Sequence[nn.Module], by: Callable[[Tensor], Tensor] = lambda hidden: hidden
    ) -> Iterator[None]:
        """A context in which layers return `by` of their hidden states; by default the hidden
        states themselves."""

        def forward(hidden_states: Tensor, *_: object, **__: object) -> LayerOutput:
            output = by(hidden_states)
            return (output,) if self._returns_tuple else output

        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_forward_replaced(layer, forward))
            yield

    def forget(self) -> None:
        """Drop the states that are not on disk yet."""
        self._unwritten = {}

    def write(self) -> None:
        """Write the states that are not on disk yet."""
        if not self._unwritten:
            return
        path = self._folder / f"{uuid4().hex}.safetensors"
        aside = path.with_suffix(".partial")
        save_file(self._unwritten, aside)
        aside.replace(path)
        self._unwritten = {}
        self._index(path)


@contextmanager
def _forward_replaced(layer: nn.Module, forward: Callable[..., LayerOutput]) -> Iterator[None]:
    # an attribute of the instance, which hides the method of its class
    before = layer.__dict__.get("forward")
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del layer.__dict__["forward"]
        else:
            layer.__dict__["forward"] = before


def _key_of(backbone: PreTrainedModel, count: int, compute_type: torch.dtype) -> str:
    """A hash of everything that the states depend on, except for the tokens."""
    settings = backbone.config.get_text_config().to_dict()
    of_layers = {name: value for name, value in settings.items() if name not in NOT_OF_LAYERS}
    config = json.dumps(of_layers, sort_keys=True, default=str)
    digest = hashlib.sha256(f"{count} {compute_type} {config}".encode())
    for name, weight in _frozen_weights(backbone, count).items():
        digest.update(name.encode())
        # NumPy has no bfloat16, so the bytes are read as they are
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
