"""GPU runs that write their outputs to pinned host memory: one copy instead of two.

ONNX Runtime's documentation calls this memory ``CudaPinned`` and reaches it by I/O binding. The
binding's public Python method does not offer this device, so the method below it is used. Not
measured: written without access to a GPU. On a CPU the same calls return ordinary memory, which the
tests use. If a call fails, the session is run without pinned memory.
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
    """A session runner with outputs in pinned memory. Thread-safe.

    Args:
        session: on the CUDA or the TensorRT provider.
        outputs: names of the requested outputs.
        device_id: number of the GPU, from 0.
    """

    def __init__(self, session: "InferenceSession", outputs: Sequence[str], device_id: int) -> None:
        self._session = session
        self._outputs = list(outputs)
        self._device_id = device_id
        self._pinned = True

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Run contiguous arrays of the inputs' types without copying them, and return the outputs.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        if self._pinned:
            try:
                return self._run_pinned(feed)
            except Exception:  # the only common base class of ONNX Runtime's errors
                # Either the binding is unusable or the device fails: the run below decides.
                logger.warning(
                    "a run with pinned outputs failed: they are not used any more", exc_info=True
                )
                self._pinned = False
        results: Sequence[NDArray[Any]] = self._session.run(self._outputs, feed)
        return results

    def _run_pinned(self, feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        from onnxruntime.capi.onnxruntime_pybind11_state import OrtDevice

        memory = OrtDevice(OrtDevice.cuda(), _HOST_ACCESSIBLE, _NVIDIA, self._device_id)
        binding = self._session.io_binding()
        for name, values in feed.items():
            binding.bind_cpu_input(name, values)
        for name in self._outputs:
            # The wrapper's own bind_output supports device memory only.
            binding._iobinding.bind_output(name, memory)  # noqa: SLF001
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]
