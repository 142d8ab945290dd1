"""The server span as opentelemetry-instrumentation-asgi describes it."""
