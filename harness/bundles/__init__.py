"""Bundles of failed tests: packed where they failed, resumed or repeated elsewhere.

``pack`` saves a test's machines at the moment of failure and writes the file; ``resume`` takes machines
out of one. :mod:`harness.evidence.bundle` is the format.
"""
