"""Prometheus metrics of a controller. Needs the `serve` extra."""

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llava.serve.control.state import Controller


class ControllerMetrics:
    """The counters of one controller, in a registry of their own; the table of workers is read on request.

    Attributes:
        registrations: by outcome: `registered`, `failed` (no status), `refused`.
        relayed: by endpoint and outcome: `started`, `no_worker`.
    """

    def __init__(self, controller: Controller) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Workers(controller))
        self.registrations = Counter(
            "llava_controller_registrations", "Registrations by outcome", ["outcome"], registry=self.registry
        )
        self.relayed = Counter(
            "llava_controller_relayed",
            "Requests for a model by outcome",
            ["endpoint", "outcome"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)


class _Workers(Collector):
    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    def collect(self) -> list[GaugeMetricFamily]:
        workers = self.controller.workers().values()
        queue = sum(info.queue_length for info in workers)
        return [
            GaugeMetricFamily("llava_controller_workers", "Known workers", value=len(workers)),
            GaugeMetricFamily("llava_controller_queue_length", "Requests at all workers, as reported", value=queue),
        ]
