"""Notices a device that is dead, so that it stops being offered."""

import asyncio
import logging
from collections.abc import Callable

import grpc

from inference_service.models.engine import Model
from servicekit.errors import SightlineError
from servicekit.vision import ModelError

logger = logging.getLogger(__name__)


class DeviceCheck:
    """After a run that failed, runs the model on an empty picture; if that fails too, it is over.

    A device that has failed for good (a GPU that fell off its bus, a poisoned CUDA context) fails
    every run of its process, and the process is of use only once it is started anew.

    Attributes:
        alive: False: the device was found dead, for good.
        on_death: called once it is, such as to turn NOT_SERVING.
    """

    def __init__(self) -> None:
        self.alive = True
        self.on_death: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def require(self) -> None:
        """Checks that the device is not known to be dead.

        Raises:
            SightlineError: UNAVAILABLE, `DEVICE_DEAD`: it is; another server may answer.
        """
        if not self.alive:
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE, "DEVICE_DEAD", "the server's device has failed"
            )

    def suspect(self, model: Model) -> None:
        """Starts a check of the model's device, unless one is on its way."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._check(model))

    async def _check(self, model: Model) -> None:
        try:
            await asyncio.to_thread(model.detector.warm_up)
        except ModelError as error:
            logger.critical(
                "the device of model %s is dead (%s): NOT_SERVING", model.name, error.message
            )
            self.alive = False
            self.on_death()
