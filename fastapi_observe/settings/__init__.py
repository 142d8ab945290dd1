"""`ObserveSettings`: every option, its types, and the sources of its value."""
