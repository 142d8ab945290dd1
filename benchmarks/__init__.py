"""What fastapi-observe costs, compared with what else a user would pick: `python -m benchmarks`."""
