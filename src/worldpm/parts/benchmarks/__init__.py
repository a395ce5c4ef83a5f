"""What judges a model: each benchmark reads its items and knows its metric; none ever sees a model."""
