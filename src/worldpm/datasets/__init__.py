"""Preference groups from files: folders of groups, plain preference sets, the hub."""
