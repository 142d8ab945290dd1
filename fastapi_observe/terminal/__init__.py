"""Text for terminals: trees of spans and exceptions, shared by the log lines and the command line."""
