"""Where traces go: FastAPI makes the spans, packages of the extra `otel` send them. Imported only where they shall."""

from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def export_traces() -> TracerProvider:
    """Send spans, in batches and off the event loop, where `OTEL_EXPORTER_OTLP_ENDPOINT` says."""
    ours = Resource.create({SERVICE_NAME: "logpx", SERVICE_VERSION: version("logpx")})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))  # what the environment says wins
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
