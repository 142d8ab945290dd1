"""A small shop and its payments service: every feature of fastapi-observe in its natural place."""
