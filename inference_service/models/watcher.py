"""Follows a model repository, in a thread of its own."""

import logging
import threading

from inference_service.models.repository import Repository

logger = logging.getLogger(__name__)


class RepositoryWatcher:
    """Loads a repository and takes in what changes there, until it is closed.

    Args:
        repository: is used by nobody else.
        seconds: between two looks, >= 0; 0: it looks only when it is told to.
    """

    def __init__(self, repository: Repository, seconds: float) -> None:
        self._repository = repository
        self._seconds = seconds
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="models")

    def start(self) -> None:
        """Load what is there, which blocks, and follows it from then on.

        Raises:
            RepositoryError: as `Repository.start`.
        """
        self._repository.start()
        self._thread.start()

    def poll_now(self) -> None:
        """Take in what is there as it is, without waiting whether it changes; does not block."""
        self._wake.set()

    def close(self) -> None:
        """End the thread, if there is one; blocks while a model is being loaded."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            told = self._wake.wait(self._seconds or None)
            self._wake.clear()
            if self._closing:
                return
            try:
                self._repository.poll(settled=told)
            except Exception:  # the next look may do better, and the models that there are go on
                logger.exception("cannot look at the model repository")
