"""Events of the demo by frame."""

from dataclasses import dataclass
from enum import Enum


class Event(Enum):
    """An event that happens before a frame is taken."""

    CUT = "the network goes down"
    RESTORE = "the network is back"
    KILL_INGEST = "the ingest service is killed (SIGKILL)"
    RESTART_INGEST = "the ingest service starts again"


@dataclass(frozen=True, slots=True)
class Script:
    """The schedule: an outage from a third to half of the frames, and a failing device outside it.

    Args:
        frames: number of frames, at least 12.
        kill_ingest: True to kill the ingest service at a quarter and restart it later.
    """

    frames: int
    kill_ingest: bool = False

    def before(self, frame: int) -> list[Event]:
        """Return the events before this frame, counted from 0."""
        schedule = {
            self.frames // 3: [Event.CUT],
            self.frames // 2: [Event.RESTORE],
        }
        if self.kill_ingest:
            schedule.setdefault(self.frames // 4, []).append(Event.KILL_INGEST)
            schedule.setdefault(self.frames * 2 // 3, []).append(Event.RESTART_INGEST)
        return schedule.get(frame, [])

    def device_fails(self, frame: int) -> bool:
        """Return True if the device's model fails at this frame: every tenth outside the outage."""
        return frame % 10 == 5 and not self.frames // 3 <= frame < self.frames // 2
