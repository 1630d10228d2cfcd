"""The promotion path: follows references in the MLflow registry and writes outcomes as tags."""
