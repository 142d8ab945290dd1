"""Building blocks without knowledge of requests or signals, and access to names of other libraries."""
