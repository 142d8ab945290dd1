"""Encoding of spans, log records and metrics as OTLP protobuf."""
