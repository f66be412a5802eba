"""Why a code base cannot be changed, and what its owner can do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Obstacle:
    """One place that does not look as expected.

    Attributes:
        where: file, with a line where there is one.
        reason: what is there instead.
        remedy: what to do by hand.
    """

    where: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}\n    by hand: {self.remedy}"


class GraftError(Exception):
    """The code base cannot be changed; nothing was written."""

    def __init__(self, obstacles: list[Obstacle]) -> None:
        super().__init__("\n".join(map(str, obstacles)))
        self.obstacles = obstacles
