"""The traces signal: spans, sampling, export and trace context."""
