"""Counts for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from adamas_cli.serve.reply import Reply
from adamas_cli.serve.worker import Worker

FIRST_TOKEN_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)  # seconds


class Metrics:
    """The counts of one server, in its own registry."""

    def __init__(self, worker: Worker) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "adamas_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._tokens = Counter(
            "adamas_tokens", "Tokens: read, reused or generated.", ["kind"], registry=registry
        )
        self._first = Histogram(
            "adamas_first_token_seconds",
            "From a request to the first token of its answer.",
            buckets=FIRST_TOKEN_BOUNDS,
            registry=registry,
        )
        active = Gauge("adamas_answers_active", "Answers under way.", registry=registry)
        active.set_function(lambda: worker.active)
        waiting = Gauge("adamas_answers_waiting", "Answers that wait for their turn.", registry=registry)
        waiting.set_function(lambda: worker.waiting)

    def count_request(self, path: str, status: int) -> None:
        """A response with this status was started. path: of the route, not of the request."""
        self._requests.labels(path, str(status)).inc()

    def count_reply(self, reply: Reply) -> None:
        """An answer ended, for any reason."""
        self._tokens.labels("reused").inc(reply.cached)
        self._tokens.labels("generated").inc(reply.tokens)
        if reply.first is not None:
            self._tokens.labels("read").inc(reply.prompt_tokens - reply.cached)
            self._first.observe(reply.first)

    def text(self) -> bytes:
        """All counts in Prometheus' format."""
        return generate_latest(self._registry)
