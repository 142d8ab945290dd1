"""Building blocks without knowledge of requests or signals; one module for each library whose private names we use."""
