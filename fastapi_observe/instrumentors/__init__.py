"""OpenTelemetry's instrumentors of client libraries: which are switched on, and how their spans become operations."""
