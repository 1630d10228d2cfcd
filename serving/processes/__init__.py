"""Model processes: fork server, replicas, virtual environments and privileges."""
