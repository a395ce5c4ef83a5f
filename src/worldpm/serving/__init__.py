"""Rewards over HTTP: requests of many clients become rows of one model, and every decision is
logged."""
