"""From text to reward: the scorer, and what a margin or a reward rests on."""
