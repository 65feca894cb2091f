"""Configuration of the manual: Sphinx reads Markdown by MyST and renders it with furo.

``./run docs`` builds it. Nothing is fetched: neither to build it nor to read it.
"""

from __future__ import annotations

project = "Harness"
copyright = "the Harness authors"
extensions = ["myst_parser"]
myst_heading_anchors = 4
# Links to other pages name their files, so that they work in the repository as well.
myst_url_schemes = {"http": None, "https": None}
nitpicky = True
html_theme = "furo"
html_title = "Harness"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
# Fonts of the reader's own system.
pygments_style = "friendly"
