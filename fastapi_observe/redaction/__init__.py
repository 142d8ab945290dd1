"""Replaces secrets in names, text, values, addresses and paths."""
