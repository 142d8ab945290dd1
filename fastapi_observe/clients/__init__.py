"""Clients that this package instruments itself: database drivers, httpx, and calls measured by hand.

A client for which OpenTelemetry has an instrumentor, such as redis, needs nothing here: `instrumentors/` measures it.
"""
