"""Workers that do the trainings of a sweep: the contract, and those of this machine."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

from .work import Job, Row


class Event(NamedTuple):
    """What became known of a training."""

    name: str
    """`Job.name`"""
    kind: Literal["row", "done", "failed", "stopped", "lost"]
    """a row of its learning curve; it is complete; an error of its own, which would come again; it
    stopped because it was asked to; whoever did it is gone, and another may go on with it"""
    row: Row | None = None
    """of metrics.csv; for `done`, what summary.json holds"""
    why: str | None = None
    """one line, for `failed` and `lost`"""


@runtime_checkable
class Pool(Protocol):
    """Who does trainings, so many at a time. Whatever was submitted ends in one of the events but
    `row`, and by then the run directory is as whole in the sweep's directory as it will be."""

    slots: int
    """trainings that go on at a time; more that are submitted wait"""

    def submit(self, job: Job) -> None:
        """Do it, or go on with it where its directory is."""
        ...

    def stop(self, name: str) -> None:
        """Let it come to an early end at a point where it can be gone on with."""
        ...

    def events(self, seconds: float) -> list[Event]:
        """What has happened since the last call, as soon as anything has, after `seconds` at
        most."""
        ...

    def close(self) -> None:
        """End everything at once; what goes on can be gone on with later."""
        ...
