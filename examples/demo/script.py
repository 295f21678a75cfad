"""What happens at which frame of the demo."""

from dataclasses import dataclass
from enum import Enum


class Event(Enum):
    """Something that happens to the world before a frame is taken."""

    CUT = "the network goes down"
    RESTORE = "the network is back"
    KILL_INGEST = "the ingest service is killed (SIGKILL)"
    RESTART_INGEST = "the ingest service starts again"


@dataclass(frozen=True, slots=True)
class Script:
    """The plot: an outage from a third to half of the frames, a failing device outside it.

    Args:
        frames: how many there are, at least 12.
        kill_ingest: whether the ingest service dies at a quarter and comes back later.
    """

    frames: int
    kill_ingest: bool = False

    def before(self, frame: int) -> list[Event]:
        """Return what happens before this frame, counted from 0."""
        plot = {
            self.frames // 3: [Event.CUT],
            self.frames // 2: [Event.RESTORE],
        }
        if self.kill_ingest:
            plot.setdefault(self.frames // 4, []).append(Event.KILL_INGEST)
            plot.setdefault(self.frames * 2 // 3, []).append(Event.RESTART_INGEST)
        return plot.get(frame, [])

    def device_fails(self, frame: int) -> bool:
        """Whether the device's model fails at this frame: every tenth, while there is a network."""
        return frame % 10 == 5 and not self.frames // 3 <= frame < self.frames // 2
