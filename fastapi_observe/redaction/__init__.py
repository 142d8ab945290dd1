"""Redaction of secrets and personal data in strings, values, paths, headers and addresses."""
