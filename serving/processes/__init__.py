"""Model processes: fork server, replicas, environments and confinement."""
