"""The page of a nightly: the matrix of the last nights, trends, and what to look at first.

``content``  what the page shows, out of a history
``page``     the page: one HTML file without a script
"""

from harness.gate.dashboard.page import page, write

__all__ = ["page", "write"]
