"""Prometheus rules, alerts, and their tests."""
