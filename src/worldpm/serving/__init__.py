"""Rewards over HTTP: one model computes the requests of many clients in common rows, and every
decision is logged."""
