"""One `/metrics` for several worker processes."""
