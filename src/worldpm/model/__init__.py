"""The model: how conversations become tokens and rows, the reward model, and where checkpoints come
from and go."""
