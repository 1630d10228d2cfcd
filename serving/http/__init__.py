"""The HTTP application: routing, request bodies, problem details and OpenAPI."""
