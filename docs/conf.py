"""Configuration of Sphinx, which `scripts/docs` runs."""

project = "MLflow serving front"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]

# Each heading down to this level is a target, so that a link to a missing one fails the build.
myst_heading_anchors = 3

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
