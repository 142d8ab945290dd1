"""What is measured: one record for each request and each operation. All signals are made from these records."""
