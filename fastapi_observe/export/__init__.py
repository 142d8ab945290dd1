"""Queues, batches and sends telemetry over OTLP."""
