"""Database clients: queries as operations, statements, pools and drivers."""
