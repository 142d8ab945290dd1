"""HTTP clients: calls as operations, and propagation of the trace context."""
