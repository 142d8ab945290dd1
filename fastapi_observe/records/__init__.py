"""The measurements: one record for each request and each operation, from which all signals are made."""
