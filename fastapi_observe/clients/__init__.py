"""Clients for databases and other services."""
