"""`SpanFile`: writes spans as JSON lines, so that the example shows traces without a tracing backend."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


class SpanFile(SpanExporter):
    """Appends each finished span to one file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write and flush the spans, since the tour reads them right after its requests."""
        for span in spans:
            if span.context is None:
                continue
            self._file.write(
                json.dumps(
                    {
                        "trace_id": f"{span.context.trace_id:032x}",
                        "span_id": f"{span.context.span_id:016x}",
                        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
                        "name": span.name,
                        "kind": span.kind.name,
                        "start": span.start_time,
                        "end": span.end_time,
                        "attributes": dict(span.attributes or {}),
                    }
                )
                + "\n"
            )
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


def span_file(service: str) -> tuple[SimpleSpanProcessor, ...]:
    """Return a span processor that writes `<service>.spans` in EXAMPLE_DIR; none if that is not set."""
    directory = os.environ.get("EXAMPLE_DIR")
    return (SimpleSpanProcessor(SpanFile(Path(directory) / f"{service}.spans")),) if directory else ()
