"""The metrics signal: series, the scrape response, and what is measured at scrape time."""
