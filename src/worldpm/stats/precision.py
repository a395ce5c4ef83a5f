"""The precision of sums on a device."""

import torch


def widest_float(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
