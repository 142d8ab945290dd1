"""Who reports what was measured: tracing, metrics, logs. No signal imports another."""
