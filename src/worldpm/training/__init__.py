"""Groups to a checkpoint: the token store, the training loop and its state, and plans for large
runs."""
