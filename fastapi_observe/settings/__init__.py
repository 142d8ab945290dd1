"""Options: their model, their sources, their types and the objectives of a service."""
