"""Database queries: measured by hand, and through instrumented engines and pools."""
