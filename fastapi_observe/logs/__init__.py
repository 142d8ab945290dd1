"""The logs signal: log lines, what is captured, and the writer."""
