"""What is known of a request: its route, its caller, its validation errors, its response headers."""
