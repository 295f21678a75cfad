"""Runs on a GPU whose outputs land in pinned host memory: one copy in place of two.

ONNX Runtime's documentation names this memory ``CudaPinned`` and the way there I/O binding. From
Python the binding's public method offers no such device, so the one beneath it is used. Not
measured: written without a GPU at hand; on a CPU the same calls give ordinary memory, and so are
tested. Where they fail, the session is run as usual.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

_HOST_ACCESSIBLE = 5  # OrtDevice::MemType of memory that host and GPU reach
_NVIDIA = 0x10DE  # PCI's number of the vendor


class PinnedOutputs:
    """Runs a session with outputs in pinned memory. Safe in threads.

    Args:
        session: on the CUDA or the TensorRT provider.
        outputs: names of the outputs that are wanted.
        device_id: number of the GPU, from 0.
    """

    def __init__(self, session: "InferenceSession", outputs: Sequence[str], device_id: int) -> None:
        self._session = session
        self._outputs = list(outputs)
        self._device_id = device_id
        self._pinned = True

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Run arrays, contiguous and of the inputs' types, to the outputs; no copy is made of them.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        if self._pinned:
            try:
                return self._run_pinned(feed)
            except Exception:  # ONNX Runtime's errors share no base class but this
                # Either the binding cannot be used, or the device fails: the next line tells.
                logger.warning("a run with pinned outputs failed: none from now on", exc_info=True)
                self._pinned = False
        found: Sequence[NDArray[Any]] = self._session.run(self._outputs, feed)
        return found

    def _run_pinned(self, feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        from onnxruntime.capi.onnxruntime_pybind11_state import OrtDevice

        memory = OrtDevice(OrtDevice.cuda(), _HOST_ACCESSIBLE, _NVIDIA, self._device_id)
        binding = self._session.io_binding()
        for name, values in feed.items():
            binding.bind_cpu_input(name, values)
        for name in self._outputs:
            # Not bind_output of the wrapper, which knows no memory but a device's own.
            binding._iobinding.bind_output(name, memory)  # noqa: SLF001
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]
