"""The settings of the service, from environment variables and flags."""
