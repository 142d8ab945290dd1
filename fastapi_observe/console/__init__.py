"""The development console: a page that shows the requests of one process while it runs."""
