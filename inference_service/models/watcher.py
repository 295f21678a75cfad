"""A thread that polls the model repository."""

import logging
import threading

from inference_service.models.repository import Repository

logger = logging.getLogger(__name__)


class RepositoryWatcher:
    """A thread that loads a repository and polls it for changes until it is closed.

    Args:
        repository: used by this thread only.
        seconds: polling interval, >= 0; 0: poll only on `poll_now`.
    """

    def __init__(self, repository: Repository, seconds: float) -> None:
        self._repository = repository
        self._seconds = seconds
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="models")

    def start(self) -> None:
        """Load the repository, which blocks, and start polling it.

        Raises:
            RepositoryError: see `Repository.start`.
        """
        self._repository.start()
        self._thread.start()

    def poll_now(self) -> None:
        """Poll immediately, and load changes without waiting for a second poll; does not block."""
        self._wake.set()

    def close(self) -> None:
        """End the thread if it was started; blocks while a model is being loaded."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            requested = self._wake.wait(self._seconds or None)
            self._wake.clear()
            if self._closing:
                return
            try:
                self._repository.poll(settled=requested)
            except Exception:  # the next poll may succeed; the loaded models stay in use
                logger.exception("cannot poll the model repository")
