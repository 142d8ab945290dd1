"""The traces signal: spans, sampling and trace context."""
