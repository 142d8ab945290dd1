"""Facts about a request: matched route, validation errors, trusted caller, access to the metrics, response headers."""
