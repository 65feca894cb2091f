"""Loads fixtures/; nothing else."""

pytest_plugins = ["fixtures.micro", "fixtures.project"]
