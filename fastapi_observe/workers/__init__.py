"""Worker processes of one server: how they find each other and share files."""
