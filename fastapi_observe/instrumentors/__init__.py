"""OpenTelemetry's instrumentors of client libraries: which are switched on, and what their spans say about a call."""
