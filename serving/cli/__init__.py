"""The command line `serving`."""
