"""A small shop that shows what the development console has to say: `python -m fastapi_observe demo`."""
