"""What runs several steps: the whole road in one command."""
