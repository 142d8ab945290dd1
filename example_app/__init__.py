"""A small shop and its payments service that use every feature of fastapi-observe."""
