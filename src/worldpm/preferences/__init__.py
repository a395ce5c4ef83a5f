"""Threads to preference groups: votes, cleaning, near-duplicates, contamination, splits."""
