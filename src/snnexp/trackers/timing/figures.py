"""Mean, extremes and 95th percentile of a stream of times, in bounded memory."""

import math
from typing import Any

ERROR = 0.01
"""Of a percentile, relative, at most."""
_GAMMA = (1 + ERROR) / (1 - ERROR)
_SCALE = 1 / math.log(_GAMMA)
SMALLEST, LARGEST = 1e-6, 1e9
"""Times in ms that a histogram tells apart: a nanosecond and twelve days, which are some 1,700 bins."""


class Figures:
    """Count, sum, extremes and a histogram of times in ms, whose bins grow by a constant factor.

    The histogram is that of DDSketch (Masson, Rim and Lee, VLDB 2019): a percentile read from it is wrong by at most ERROR of itself.
    """

    __slots__ = ("_bins", "calls", "count", "exclusive", "inclusive", "largest", "overlapped", "smallest")

    def __init__(self) -> None:
        self.count = self.calls = 0
        self.inclusive = self.exclusive = self.overlapped = 0.0  # sums
        self.smallest, self.largest = math.inf, 0.0
        self._bins: dict[int, int] = {}

    def add(self, inclusive: float, exclusive: float, calls: int, overlapped: float = 0.0) -> None:
        """One step's times."""
        self.count += 1
        self.calls += calls
        self.inclusive += inclusive
        self.exclusive += exclusive
        self.overlapped += overlapped
        if inclusive < self.smallest:
            self.smallest = inclusive
        if inclusive > self.largest:
            self.largest = inclusive
        within = inclusive if SMALLEST < inclusive < LARGEST else min(max(inclusive, SMALLEST), LARGEST)
        index = math.ceil(math.log(within) * _SCALE)
        bins = self._bins
        bins[index] = bins.get(index, 0) + 1

    def percentile(self, part: float, steps: int) -> float:
        """The time that the share `part` of all `steps` did not exceed; steps in which nothing was added took none."""
        wanted = math.ceil(part * steps) - (steps - self.count)
        if wanted <= 0:
            return 0.0
        for index in sorted(self._bins):
            wanted -= self._bins[index]
            if wanted <= 0:
                middle = 2 * _GAMMA**index / (_GAMMA + 1)
                return min(max(middle, self.smallest), self.largest)
        return self.largest

    def state_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {name.lstrip("_"): getattr(self, name) for name in self.__slots__} | {"bins": dict(self._bins)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name in self.__slots__:
            setattr(self, name, state[name.lstrip("_")])
        self._bins = dict(self._bins)
