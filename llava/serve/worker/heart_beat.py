"""How a worker stays known to its controller: registration and heart beats in a thread (contract: serve.md 2).

The thread is a daemon, sends one thing at a time, and never raises: a controller that is away, or restarted and
has forgotten this worker, is repaired by a later beat (S-5, S-20).
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.wire import SECRET_HEADER, direct_session

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
REQUEST_TIMEOUT = 5.0
# Requests that start and end in a burst share one beat: a busy worker must not flood its controller.
SHORTEST_GAP = 0.05


class HeartBeat:
    """Registers a worker and reports its queue length: at intervals, and soon after `nudge`.

    Args:
        controller_addr: base URL of the controller.
        worker_addr: base URL under which the worker registers.
        get_status: gives the worker's status; called from the thread.
        secret: shared secret of controller and workers, None without one.
        check_heart_beat: whether the controller shall forget the worker when the beats end.
        interval: seconds between two beats.
        retry: seconds to wait after a failure; nudges do not shorten it.
    """

    def __init__(
        self,
        controller_addr: str,
        worker_addr: str,
        get_status: Callable[[], dict[str, Any]],
        secret: str | None = None,
        check_heart_beat: bool = True,
        interval: float = WORKER_HEART_BEAT_INTERVAL,
        retry: float = RETRY_SECONDS,
    ) -> None:
        self.controller_addr = controller_addr.rstrip("/")
        self.worker_addr = worker_addr
        self.get_status = get_status
        self.check_heart_beat = check_heart_beat
        self.interval = interval
        self.retry = retry
        self._headers = {SECRET_HEADER: secret} if secret else {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Register, and keep beating until `stop`. Calling it again changes nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heart-beat", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread; one that waits for the controller is left to end by itself."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def nudge(self) -> None:
        """Ask for a beat soon; returns at once."""
        self._wake.set()

    def register(self) -> bool:
        """Register once; whether the controller took it. An old controller says yes even when it did not (S-20)."""
        logger.info("Register to controller %s as %s", self.controller_addr, self.worker_addr)
        answer = {
            "worker_name": self.worker_addr,
            "check_heart_beat": self.check_heart_beat,
            "worker_status": self.get_status(),
        }
        return self._post("/register_worker", answer) is not None

    def beat(self) -> bool:
        """Send one heart beat, and the registration to a controller that asks for it; whether it went well."""
        report = {"worker_name": self.worker_addr, "queue_length": self.get_status()["queue_length"]}
        answer = self._post("/receive_heart_beat", report)
        if answer is None:
            return False
        known = answer[0].get("exist") if isinstance(answer[0], dict) else None
        if known is None:
            logger.error("%s does not answer like a controller; check --controller-address.", self.controller_addr)
            return False
        return True if known else self.register()

    def _run(self) -> None:
        went_well = self._guarded(self.register)
        while True:
            if went_well:
                self._wake.wait(self.interval)
            else:
                self._stopping.wait(self.retry)
            if self._stopping.wait(SHORTEST_GAP):
                return
            self._wake.clear()
            went_well = self._guarded(self.beat)

    def _guarded(self, action: Callable[[], bool]) -> bool:
        """An error of any kind must not end the thread: the worker would vanish from its controller for good."""
        try:
            return action()
        except Exception:
            logger.exception("The heart beat failed and is tried again.")
            return False

    def _post(self, path: str, body: dict[str, Any]) -> tuple[Any] | None:
        """The answer's JSON, in a tuple as it may be null; None (logged) if there is no good answer."""
        import requests

        url = self.controller_addr + path
        try:
            with direct_session() as session:
                response = session.post(
                    url, json=body, headers=self._headers, timeout=REQUEST_TIMEOUT, allow_redirects=False
                )
            if response.status_code == 200:
                return (response.json(),)
            logger.error("%s answered with status %d: %s", url, response.status_code, response.text[:300])
        except (requests.RequestException, ValueError) as error:
            logger.error("%s cannot be reached: %s: %s", url, type(error).__name__, error)
        return None
