"""What users call: queries, calls to other services."""
