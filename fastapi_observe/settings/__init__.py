"""Options: their model, their sources, their types and the objectives of a service.

A new option is an `option(...)` in `model.py`, and its type, for editors and type checkers, in `options.py`. A test
compares the two.
"""
