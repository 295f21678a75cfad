"""Detection of a dead device, so that the server stops accepting requests for it."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import grpc

from inference_service.models.engine import Model
from servicekit.errors import SightlineError
from vision import ModelError

logger = logging.getLogger(__name__)


class DeviceCheck:
    """A check of the device that runs after a failed run of a model.

    The check runs the model on an empty image, and if that fails, the other models on the same
    device. A device that has failed permanently (a GPU that fell off its bus, a corrupt CUDA
    context) fails every run of every model in this process until the process is restarted. If
    another model still runs on the device, the failing model is at fault and the others continue.

    Attributes:
        alive: False once the device has been found dead; it stays False.
        on_death: called once when the device is found dead, e.g. to report NOT_SERVING.
    """

    def __init__(self) -> None:
        self.alive = True
        self.on_death: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def require(self) -> None:
        """Check that the device is not known to be dead.

        Raises:
            SightlineError: UNAVAILABLE, `DEVICE_DEAD`; another server may answer.
        """
        if not self.alive:
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE,
                "DEVICE_DEAD",
                "the server's device has failed: try another server",
            )

    def suspect(self, model: Model, loaded: Sequence[Model] = ()) -> None:
        """Start a check of a model's device, unless one is running or the device is dead.

        Args:
            model: the model whose run failed.
            loaded: all loaded models; those on the same device are run for comparison.
        """
        if self.alive and (self._task is None or self._task.done()):
            provider = model.network.provider
            others = [m for m in loaded if m is not model and m.network.provider == provider]
            self._task = asyncio.create_task(self._check([model, *others]))

    async def _check(self, models: Sequence[Model]) -> None:
        working, reason = await asyncio.to_thread(_first_working, models)
        suspect = models[0]
        if working is suspect:
            return
        if working is not None:
            logger.error(
                "model %s version %s fails every run (%s), although its device is alive",
                suspect.name,
                suspect.version,
                reason,
            )
            return
        logger.critical("the device of model %s is dead (%s): NOT_SERVING", suspect.name, reason)
        self.alive = False
        self.on_death()


def _first_working(models: Sequence[Model]) -> tuple[Model | None, str]:
    """Return the first model that runs on an empty image, and the first error message."""
    reason = ""
    for model in models:
        try:
            model.network.warm_up()
        except ModelError as error:
            reason = reason or error.message
        except MemoryError:  # no evidence against the device: memory may be free later
            return model, reason
        else:
            return model, reason
    return None, reason
