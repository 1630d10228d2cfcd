"""Authentication and authorization: API keys, the access that routes require, hosts and origins."""
