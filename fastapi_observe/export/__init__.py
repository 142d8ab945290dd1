"""Export over OTLP: queues and batches, the transports over HTTP and gRPC, and their counts.

The words here, in the order of an item's way from `ExportQueue.put` to the Collector:

- An item is a span, a log line or a family of metrics. It is raw until it is encoded.
- A slice is the items that are encoded together, by the thread that puts the last of them.
- Encoded items are due when `batch_delay` has passed since the first of them, or when they fill a batch.
- A batch is the items of one request. A request may be retried, and deferred if the Collector asks for it later.
- An outage is a series of failed requests. After three of them only probes are sent, requests without items.
- An item is settled when it is exported or dropped. Each drop has a reason.

Spans are exported from `traces/`; `push.py` adds log lines and metrics, if they are enabled. A new exporter is a
`Transport` (`transport.py`) that `make_transport` (`setup.py`) returns for its `otlp_protocol`.
"""
