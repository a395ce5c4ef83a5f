"""From text to reward: the scorer, the confidence in margins, and explanations of rewards."""
