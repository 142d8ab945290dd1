"""How worker processes of one server find each other and share files."""
