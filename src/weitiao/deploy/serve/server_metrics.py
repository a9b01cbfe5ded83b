"""What Prometheus reads from /metrics: requests, tokens, the queue, latencies. No label holds what a client wrote."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": "weitiao", "registry": self.registry}
        self.requests = Counter("requests", "Requests by route and status", ("route", "status"), **own)
        self.seconds = Histogram("request_seconds", "From headers to the last byte", ("route",), buckets=SECONDS, **own)
        self.first_token = Histogram("time_to_first_token_seconds", "Until the first token", buckets=SECONDS, **own)
        self.per_token = Histogram("time_per_output_token_seconds", "Between tokens, mean", buckets=SECONDS, **own)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts", **own)
        self.cached_tokens = Counter("cached_prompt_tokens", "Of them: taken from the prefix cache", **own)
        self.completion_tokens = Counter("completion_tokens", "Tokens generated", **own)
        self.cancelled = Counter("cancelled", "Answers that were cancelled: the client left, or time was up", **own)
        self.running = Gauge("running", "Answers that are being generated", **own)
        self.waiting = Gauge("waiting", "Answers that wait for a slot", **own)
        self.slots = Gauge("slots", "Answers that can be generated at once", **own)
        self.adapters = Gauge("adapters_loaded", "Adapters in memory", **own)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
