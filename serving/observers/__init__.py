"""The observer features: access log, tracing, traffic history and the collector of states."""
