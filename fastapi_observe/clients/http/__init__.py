"""HTTP clients: calls as operations, trace context propagation."""
