"""The HTTP endpoints; each module adds the routes of one protocol or purpose."""
