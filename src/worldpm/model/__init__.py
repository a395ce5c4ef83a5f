"""The model: conversations as tokens and rows, rewards of rows, costs, and folders of models."""
