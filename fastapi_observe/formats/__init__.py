"""The JSON formats of log lines, one module for each platform that reads them."""
