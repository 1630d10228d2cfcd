"""What is watched while requests are answered: versions that are tried, beside those that are live."""
