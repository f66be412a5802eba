"""A controller's table of workers, and the choice of one for a request. Plain state, without HTTP."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.serve.access import RegistrationRefused

logger = logging.getLogger(__name__)

MAX_WORKERS = 1024
MAX_MODELS_PER_WORKER = 256
MAX_NAME_LENGTH = 256
SMALLEST_TOTAL_WEIGHT = 1e-4
# Far above anything real; keeps reported numbers in a range that can be divided and added up.
LARGEST_NUMBER = 10**9


class DispatchMethod(Enum):
    """How a worker is chosen among those that serve a model: at random by speed, or by the shortest queue."""

    LOTTERY = auto()
    SHORTEST_QUEUE = auto()

    @classmethod
    def from_str(cls, name: str) -> "DispatchMethod":
        """Parse a name.

        Raises:
            ValueError: neither `lottery` nor `shortest_queue`.
        """
        if name == "lottery":
            return cls.LOTTERY
        if name == "shortest_queue":
            return cls.SHORTEST_QUEUE
        raise ValueError("Invalid dispatch method")


@dataclass
class WorkerInfo:
    """One worker's entry; `last_heart_beat` is in seconds of the controller's clock.

    `may_share`: this worker may serve models that others serve too, see `RegistrationRules.may_share_models`.
    """

    model_names: list[str]
    speed: float
    queue_length: int
    check_heart_beat: bool
    last_heart_beat: float
    may_share: bool = True


def parse_status(status: Any) -> dict[str, Any]:
    """Validate a worker's status: model names, speed, queue length.

    Raises:
        ValueError: something is missing or of the wrong type; names it.
    """
    if not isinstance(status, Mapping):
        raise ValueError("a worker's status must be a JSON object")
    names, speed, queue_length = (status.get(key) for key in ("model_names", "speed", "queue_length"))
    if not isinstance(names, list) or len(names) > MAX_MODELS_PER_WORKER:
        raise ValueError("a worker's status needs model_names, a list of names")
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() for name in names):
        raise ValueError(f"a model's name must be a text of 1 to {MAX_NAME_LENGTH} printable characters")
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 <= speed <= LARGEST_NUMBER:
        raise ValueError(f"a worker's status needs speed, a number from 0 to {LARGEST_NUMBER}")
    if isinstance(queue_length, bool) or not isinstance(queue_length, int) or not 0 <= queue_length <= LARGEST_NUMBER:
        raise ValueError(f"a worker's status needs queue_length, a whole number from 0 to {LARGEST_NUMBER}")
    return {"model_names": list(names), "speed": speed, "queue_length": queue_length}


def shown_name(name: str) -> str:
    """A name that a client sent, safe to log and to show."""
    return ascii(name[:MAX_NAME_LENGTH])


class Controller:
    """The table of workers. Every method is safe to call from any thread and returns at once.

    Args:
        dispatch_method: `lottery` or `shortest_queue`, or a `DispatchMethod`.
        expiration: seconds without a heart beat after which a worker is removed.
        clock: current time in seconds.
        choose: picks one of several names by weights, like `random.choices`.
    """

    def __init__(
        self,
        dispatch_method: str | DispatchMethod,
        *,
        expiration: float = CONTROLLER_HEART_BEAT_EXPIRATION,
        clock: Callable[[], float] = time.monotonic,
        choose: Callable[..., list[str]] = random.choices,
    ) -> None:
        if isinstance(dispatch_method, str):
            dispatch_method = DispatchMethod.from_str(dispatch_method)
        self.dispatch_method = dispatch_method
        self.expiration = expiration
        self.worker_info: dict[str, WorkerInfo] = {}
        self._clock = clock
        self._choose = choose
        self._lock = threading.Lock()

    def register_worker(
        self, worker_name: str, check_heart_beat: bool, worker_status: Mapping[str, Any], may_share: bool = True
    ) -> bool:
        """Add a worker, or replace its entry; always True.

        Args:
            worker_name: its base URL.
            check_heart_beat: whether it is removed when its heart beats stop.
            worker_status: its status, validated by `parse_status`.
            may_share: whether it may serve a model that another live worker serves.

        Raises:
            ValueError: the status is malformed.
            RegistrationRefused: another worker serves one of its models, or the table is full.
        """
        status = parse_status(worker_status)
        with self._lock:
            if worker_name not in self.worker_info and len(self.worker_info) >= MAX_WORKERS:
                raise RegistrationRefused(f"this controller has {MAX_WORKERS} workers already")
            if not may_share:
                self._check_ownership(worker_name, status["model_names"])
            self.worker_info[worker_name] = WorkerInfo(
                **status, check_heart_beat=check_heart_beat, last_heart_beat=self._clock(), may_share=may_share
            )
        logger.info("Registered: %s, %s", worker_name, status)
        return True

    def receive_heart_beat(self, worker_name: str, queue_length: int) -> bool:
        """Record a worker's queue length and the time; False for an unknown worker, which then registers again."""
        with self._lock:
            info = self.worker_info.get(worker_name)
            if info is None:
                logger.info("Heart beat of an unknown worker: %s", shown_name(worker_name))
                return False
            info.queue_length = queue_length
            info.last_heart_beat = self._clock()
            return True

    def list_models(self) -> list[str]:
        """The names of all models, each once, in the order of registration."""
        with self._lock:
            return list(dict.fromkeys(name for info in self.worker_info.values() for name in info.model_names))

    def workers(self) -> dict[str, WorkerInfo]:
        """A copy of the table as it is now."""
        with self._lock:
            return {name: replace(info) for name, info in self.worker_info.items()}

    def get_worker_address(self, model_name: str) -> str:
        """The worker for one request, or an empty string; `shortest_queue` adds the request to the worker's queue."""
        with self._lock:
            serving = {name: info for name, info in self.worker_info.items() if model_name in info.model_names}
            if self.dispatch_method == DispatchMethod.LOTTERY:
                return self._draw(serving)
            if not serving:
                return ""
            chosen = min(serving, key=lambda name: _load(serving[name]))  # the first registered wins ties
            serving[chosen].queue_length += 1
            return chosen

    def apply_status(self, worker_name: str, asked: WorkerInfo, status: Mapping[str, Any] | None) -> None:
        """Apply a worker's answer to a refresh; None, or a status with a model it may not serve, removes the worker.

        Args:
            worker_name: the worker that was asked.
            asked: its entry (of `workers`) when it was asked. A worker that has reported since is not removed.
            status: its validated status; None if it gave none.
        """
        with self._lock:
            info = self.worker_info.get(worker_name)
            if info is None:
                return
            if status is None:
                if info.last_heart_beat == asked.last_heart_beat:
                    del self.worker_info[worker_name]
                    logger.warning("Removed, it gives no status: %s", worker_name)
                return
            new_names = [name for name in status["model_names"] if name not in info.model_names]
            try:
                if not info.may_share:
                    self._check_ownership(worker_name, new_names)
            except RegistrationRefused as refusal:
                del self.worker_info[worker_name]
                logger.warning("Removed: %s: %s", worker_name, refusal)
                return
            info.model_names, info.speed = status["model_names"], status["speed"]
            info.queue_length, info.last_heart_beat = status["queue_length"], self._clock()

    def remove_expired(self) -> list[str]:
        """Remove the workers whose heart beats have stopped; returns their names."""
        with self._lock:
            expired = [name for name, info in self.worker_info.items() if not self._is_live(info)]
            for name in expired:
                del self.worker_info[name]
        if expired:
            logger.warning("Removed, no heart beat: %s", ", ".join(expired))
        return expired

    def _is_live(self, info: WorkerInfo) -> bool:
        return not info.check_heart_beat or self._clock() - info.last_heart_beat <= self.expiration

    def _check_ownership(self, worker_name: str, model_names: list[str]) -> None:
        for name, info in self.worker_info.items():
            taken = [model for model in model_names if model in info.model_names]
            if name != worker_name and taken and self._is_live(info):
                raise RegistrationRefused(
                    f"another worker serves {', '.join(taken)} already; give both the controller's shared secret "
                    "(LLAVA_SECRET or --secret-file), or start the controller with --allow-replicas"
                )

    def _draw(self, serving: Mapping[str, WorkerInfo]) -> str:
        weights = [info.speed for info in serving.values()]
        if sum(weights) < SMALLEST_TOTAL_WEIGHT:
            return ""
        return self._choose(list(serving), weights=weights)[0]


def _load(info: WorkerInfo) -> float:
    """Queue length per speed. Speed 0 (a controller without workers) makes a worker the last choice."""
    return info.queue_length / info.speed if info.speed > 0 else math.inf
