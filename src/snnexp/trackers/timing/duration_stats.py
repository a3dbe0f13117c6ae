"""Mean, extremes and percentiles of a stream of times, in bounded memory."""

import math
from typing import Any

ERROR = 0.01
"""The largest relative error of a percentile."""
_GAMMA = (1 + ERROR) / (1 - ERROR)
_SCALE = 1 / math.log(_GAMMA)
SMALLEST, LARGEST = 1e-6, 1e9
"""The range of times in ms that a histogram resolves: from a nanosecond to twelve days, in about 1,700 bins."""
LARGEST_BIN = math.ceil(_SCALE * math.log(LARGEST)) + 1


class DurationStats:
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
        """Add the times of one step in ms."""
        self.count += 1
        self.calls += calls
        self.inclusive += inclusive
        self.exclusive += exclusive
        self.overlapped += overlapped
        if inclusive < self.smallest:
            self.smallest = inclusive
        if inclusive > self.largest:
            self.largest = inclusive
        clamped = inclusive if SMALLEST < inclusive < LARGEST else min(max(inclusive, SMALLEST), LARGEST)
        index = math.ceil(math.log(clamped) * _SCALE)
        bins = self._bins
        bins[index] = bins.get(index, 0) + 1

    def percentile(self, part: float, steps: int) -> float:
        """Return the time that the share `part` of all `steps` did not exceed; a step without an added time counts as 0."""
        left = math.ceil(part * steps) - (steps - self.count)
        if left <= 0:
            return 0.0
        for index in sorted(self._bins):
            left -= self._bins[index]
            if left <= 0:
                middle = 2 * _GAMMA**index / (_GAMMA + 1)
                return min(max(middle, self.smallest), self.largest)
        return self.largest

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain values."""
        return {name.lstrip("_"): getattr(self, name) for name in self.__slots__} | {"bins": dict(self._bins)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises: ValueError if it holds anything but numbers.
        """
        numbers = [state[name.lstrip("_")] for name in self.__slots__ if name != "_bins"]
        if not all(type(value) in (int, float) and value >= 0 for value in (*numbers, *state["bins"].values())):
            raise ValueError("times that are no numbers of at least 0")
        if not all(type(index) is int and abs(index) < LARGEST_BIN for index in state["bins"]):
            raise ValueError("a bin of the histogram that no time lies in")
        for name in self.__slots__:
            setattr(self, name, state[name.lstrip("_")])
        self._bins = dict(self._bins)
