"""Clients without an OpenTelemetry instrumentor: database drivers, httpx, and calls measured by hand."""
