"""Notices a device that is dead, so that it stops being offered."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc

from inference_service.models.engine import Model
from servicekit.errors import SightlineError
from vision import ModelError

logger = logging.getLogger(__name__)


class DeviceCheck:
    """After a run that failed, runs the model on an empty image; if that fails too, others.

    A device that has failed for good (a GPU that fell off its bus, a poisoned CUDA context) fails
    every run of every model on it in this process, which is of use only once it is started anew. A
    model that fails while another one runs on the same device is at fault itself: the others go on.

    Attributes:
        alive: False: the device was found dead, for good.
        on_death: called once it is, such as to turn NOT_SERVING.
    """

    def __init__(self) -> None:
        self.alive = True
        self.on_death: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def require(self) -> None:
        """Check that the device is not known to be dead.

        Raises:
            SightlineError: UNAVAILABLE, `DEVICE_DEAD`: it is; another server may answer.
        """
        if not self.alive:
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE, "DEVICE_DEAD", "the server's device has failed"
            )

    def suspect(self, model: Model, loaded: Sequence[Model] = ()) -> None:
        """Start a check of a model's device, unless one is on its way or the device is dead.

        Args:
            model: whose run failed.
            loaded: all that are loaded; those on the same device bear witness.
        """
        if self.alive and (self._task is None or self._task.done()):
            provider = model.network.provider
            others = [m for m in loaded if m is not model and m.network.provider == provider]
            self._task = asyncio.create_task(self._check([model, *others]))

    async def _check(self, models: Sequence[Model]) -> None:
        runs, why = await asyncio.to_thread(_first_that_runs, models)
        suspect = models[0]
        if runs is suspect:
            return
        if runs is not None:
            logger.error(
                "model %s version %s fails every run (%s), though its device is alive",
                suspect.name,
                suspect.version,
                why,
            )
            return
        logger.critical("the device of model %s is dead (%s): NOT_SERVING", suspect.name, why)
        self.alive = False
        self.on_death()


def _first_that_runs(models: Sequence[Model]) -> tuple[Model | None, str]:
    """Return the first model that runs on an empty image, and what the first of all said."""
    why = ""
    for model in models:
        try:
            model.network.warm_up()
        except ModelError as error:
            why = why or error.message
        except MemoryError:  # which says nothing of the device: it may have some later
            return model, why
        else:
            return model, why
    return None, why
