"""Add the connectors to an existing LLaVA code base: see README.md."""
