"""Runbooks of the alerts."""
