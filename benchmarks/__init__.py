"""What fastapi-observe costs, beside what else a user would pick: `python -m benchmarks`."""
