"""Registration and heart beats of a worker, in a thread.

The thread is a daemon, sends one request at a time and never raises. A controller that is unreachable, or has been
restarted and does not know this worker any more, is repaired by a later beat.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.http_client import post
from llava.serve.wire import SECRET_HEADER, WireError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
# Requests that start and end in a burst share one beat: a busy worker must not flood its controller.
SHORTEST_GAP = 0.05


class HeartBeat:
    """Registers a worker and reports its queue length: at intervals, and soon after `nudge`.

    Args:
        controller_addr: base URL of the controller.
        worker_addr: base URL under which the worker registers.
        get_status: returns the worker's status; called from the thread.
        secret: shared secret of controller and workers; None without one.
        check_heart_beat: whether the controller removes the worker when its beats stop.
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
        """Register, and send beats until `stop`. Further calls do nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heart-beat", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread; one that waits for the controller longer than `timeout` seconds ends by itself."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def nudge(self) -> None:
        """Request a beat soon; returns at once."""
        self._wake.set()

    def register(self) -> bool:
        """Register once; whether the controller accepted. Old controllers report success even for failures."""
        logger.info("Register to controller %s as %s", self.controller_addr, self.worker_addr)
        registration = {
            "worker_name": self.worker_addr,
            "check_heart_beat": self.check_heart_beat,
            "worker_status": self.get_status(),
        }
        return self._post("/register_worker", registration) is not None

    def beat(self) -> bool:
        """Send one heart beat, and the registration if the controller does not know this worker; whether all worked."""
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
        was_successful = self._guarded(self.register)
        while True:
            if was_successful:
                self._wake.wait(self.interval)
            else:
                self._stopping.wait(self.retry)
            if self._stopping.wait(SHORTEST_GAP):
                return
            self._wake.clear()
            was_successful = self._guarded(self.beat)

    def _guarded(self, action: Callable[[], bool]) -> bool:
        """No error may end the thread: the worker would disappear from its controller."""
        try:
            return action()
        except Exception:
            logger.exception("The heart beat failed and will be retried.")
            return False

    def _post(self, path: str, body: dict[str, Any]) -> tuple[Any] | None:
        """The JSON of the answer, in a tuple as it may be null; None (logged) if there is no valid answer."""
        url = self.controller_addr + path
        try:
            response = post(url, body, headers=self._headers)
            if response.status_code == 200:
                return (response.json(),)
            logger.error("%s answered with status %d: %s", url, response.status_code, response.text[:300])
        except (WireError, ValueError) as error:
            logger.error("%s failed: %s", path, error)
        return None
