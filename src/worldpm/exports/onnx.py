"""A checkpoint as an ONNX graph: token ids and the places of the end tokens in, rewards out.

Rows are padded at the right with anything: attention is causal, so what stands after an end token
cannot change its reward.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from worldpm.errors import ConfigError, WorldPMError
from worldpm.model.encoder import EncodedGroup
from worldpm.model.reward_model import RewardModel

Json = dict[str, Any]
GRAPH, GRAPH_INT8 = "model.onnx", "model_int8.onnx"
LARGEST_BYTES = 1_500_000_000
PARITY = 1e-4
"""The largest difference of a reward, in logits or relative to it, that a float32 graph may
have."""


class _Graph(nn.Module):
    """What is traced: explicit positions, no mask, the reward at each row's end."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.backbone, self.score = model.backbone, model.score

    def forward(self, input_ids: Tensor, ends: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0).expand(input_ids.shape[0], -1)
        hidden = self.backbone(
            input_ids=input_ids, position_ids=positions, use_cache=False
        ).last_hidden_state
        rewards: Tensor = self.score(hidden[torch.arange(input_ids.shape[0]), ends]).sum(dim=-1)
        return rewards


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own graph."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)


def write(
    model: RewardModel,
    path: Path,
    groups: Sequence[EncodedGroup],
    expected: Sequence[Sequence[float]],
) -> Json:
    """Trace the model, in float32 on a CPU, with any number of rows of any length, write the graph,
    and compare it on groups.

    Raises:
        ConfigError: If the model is too large for one file.
        WorldPMError: If the graph's rewards are others; it is then not kept.
    """
    if (size := sum(p.numel() * p.element_size() for p in model.parameters())) > LARGEST_BYTES:
        raise ConfigError(
            f"{size:,} bytes of weights in float32; an ONNX file holds {LARGEST_BYTES:,}: use --to"
            " model for larger ones"
        )
    shares = model.shares_prefix
    model.share_prefix(False)
    rows, length = (
        torch.export.Dim("rows", min=1, max=4096),
        torch.export.Dim("length", min=2, max=32_768),
    )
    example = (torch.ones(3, 7, dtype=torch.int64), torch.tensor([6, 2, 4]))
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            _Graph(model).eval(),
            example,
            path,
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "ends"],
            output_names=["rewards"],
            dynamic_shapes={"input_ids": {0: rows, 1: length}, "ends": {0: rows}},
            external_data=False,
        )
    model.share_prefix(bool(shares))
    return {
        "bytes": path.stat().st_size,
        "largest difference": check(expected, Runtime(path).rewards(groups)),
    }


def quantise(path: Path, target: Path) -> Json:
    """Write the graph with its weight matrices as 8-bit integers; activations are quantised as they
    come."""
    graph = onnx.load(path)
    del graph.graph.value_info[
        :
    ]  # shapes that the quantiser finds for itself, and would quarrel with
    with _quiet():
        quantize_dynamic(graph, target, weight_type=QuantType.QInt8)
    return {"bytes": target.stat().st_size}


class Runtime:
    """A graph in onnxruntime, on the CPU."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def rewards(self, groups: Sequence[EncodedGroup]) -> list[list[float]]:
        """Rewards of each group's responses, one padded batch a group."""
        return [self._of(group) for group in groups]

    def _of(self, group: EncodedGroup) -> list[float]:
        rows = [
            np.concatenate([group.prefix, suffix]).astype(np.int64) for suffix in group.suffixes
        ]
        if not rows:
            return []
        ids: NDArray[np.int64] = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        ends = np.array([len(row) - 1 for row in rows], dtype=np.int64)
        found: list[float] = self._session.run(["rewards"], {"input_ids": ids, "ends": ends})[
            0
        ].tolist()
        return found


def largest_difference(
    expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]]
) -> float:
    """Of a reward, relative to it where it is above 1."""
    pairs = [
        (a, b)
        for one, other in zip(expected, found, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return max((abs(a - b) / max(1.0, abs(a)) for a, b in pairs), default=0.0)


def check(expected: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> float:
    """The largest difference.

    Raises:
        WorldPMError: If a graph that should be exact is not.
    """
    if not (worst := largest_difference(expected, found)) <= PARITY:
        raise WorldPMError(
            f"the ONNX graph's rewards differ by {worst:.2g}; at most {PARITY:g} is right, so it is"
            " not kept"
        )
    return worst
