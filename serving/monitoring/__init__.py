"""What is watched while requests are answered: drift, and versions that are tried beside live ones."""
