"""Rewards for training policies: one module per trainer, in the form that the trainer loads. The
modules import no trainer."""
