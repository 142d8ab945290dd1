"""Export over OTLP: queues and batches, the transports over HTTP and gRPC, and their counts."""
