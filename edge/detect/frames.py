"""Transfer of images to a detector's process in shared memory, which saves two copies.

The memory has no name, so nothing is left behind however the processes end. On systems without
`memfd_create` (all but Linux), images are sent inside the messages.
"""

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edge.detect.messages import DetectRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PAGE = 1 << 20
"""Granularity in bytes by which the memory grows."""


class FrameWriter:
    """The owner's side: writes one image at a time into memory that grows with the largest.

    Args:
        shared: use shared memory if the system has it.

    Attributes:
        fd: file descriptor of the shared memory, for the other process; None: there is none.
    """

    def __init__(self, *, shared: bool = True) -> None:
        use = shared and hasattr(os, "memfd_create")
        self.fd: int | None = os.memfd_create("sightline-frames") if use else None
        self._memory: mmap.mmap | None = None

    def put(self, image: "NDArray[np.uint8] | bytes | str | Path") -> DetectRequest:
        """Write an image over the previous one, and return the request that refers to it.

        Args:
            image: an array `[H, W, 3]`, an encoded file or its path.

        Raises:
            OSError: the system is out of memory.
        """
        if isinstance(image, str | Path):
            return DetectRequest(path=os.path.abspath(image))  # noqa: PTH100 - Path.absolute keeps ".."
        shape = None if isinstance(image, bytes) else image.shape
        size = len(image) if isinstance(image, bytes) else image.nbytes
        if self.fd is None:
            content = image if isinstance(image, bytes) else image.tobytes()
            return DetectRequest(shape, size, content)
        memory = self._grown(self.fd, size)
        if isinstance(image, bytes):
            memory[:size] = image
        else:
            _copy(image, memory)
        return DetectRequest(shape, size)

    def close(self) -> None:
        """Release the memory."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    def _grown(self, fd: int, size: int) -> mmap.mmap:
        if self._memory is None or len(self._memory) < size:
            if self._memory is not None:
                self._memory.close()
                self._memory = None
            os.ftruncate(fd, -(-max(size, 1) // _PAGE) * _PAGE)
            self._memory = mmap.mmap(fd, 0)
        return self._memory


class FrameReader:
    """The detector's side: reads the images that `FrameWriter` wrote.

    Args:
        fd: file descriptor of the shared memory; None: there is none.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._memory: mmap.mmap | None = None

    def get(self, request: DetectRequest) -> "NDArray[np.uint8] | bytes | str":
        """Return the image. An array is a view of the shared memory, valid until the next image."""
        if request.path is not None:
            return request.path
        source = request.content if request.content is not None else self._mapped(request.size)
        if request.shape is None:
            return bytes(memoryview(source)[: request.size])
        import numpy as np

        flat = np.frombuffer(source, np.uint8, count=request.size)
        return flat.reshape(request.shape)

    def _mapped(self, size: int) -> mmap.mmap:
        if self._fd is None:
            raise ValueError("there is no shared memory, so the message must hold the image")
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self._fd, 0)  # the old map is freed with its last array
        return self._memory


def _copy(array: "NDArray[np.uint8]", memory: mmap.mmap) -> None:
    import numpy as np

    target = np.frombuffer(memory, np.uint8, count=array.nbytes).reshape(array.shape)
    np.copyto(target, array)
