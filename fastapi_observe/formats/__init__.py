"""The JSON formats of log lines, one module for each platform that reads them, and the names of the request metrics.

They are apart from the signals because `slo/` needs the same names, for its queries. A new format is a `LineFormat` in
a module, which `choice.py` returns for its `log_format`.
"""
