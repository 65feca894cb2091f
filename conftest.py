"""Loads the fixtures; nothing else."""

pytest_plugins = ["fixtures.plugin"]
