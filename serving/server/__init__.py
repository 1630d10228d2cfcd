"""The HTTP server: listeners, the protocol on sockets, and health checks."""
