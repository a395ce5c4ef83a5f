"""Rewards for training policies: a module for each trainer, in the form that it loads. No trainer
is imported."""
