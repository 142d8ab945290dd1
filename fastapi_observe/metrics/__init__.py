"""The metrics signal: series, the scrape response, and what is measured at scrape time.

`service.py` has the metrics of requests and jobs, `operations.py` those of queries and calls; `system.py` and
`saturation.py` are collectors, which read values of the process at scrape time.
"""
