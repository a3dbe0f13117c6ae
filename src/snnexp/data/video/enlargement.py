"""Enlargement of small pictures to the size of others, for the spikes of a camera with fewer pixels."""

import numpy as np

from snnexp.data.video.spike_camera import Box


class Enlargement:
    """Enlarges pictures of `small` pixels to `size` (height, width) and cuts out `box`: bilinear, pixel centres correspond.

    `inner`: the box of the small picture that this needs.
    """

    def __init__(self, small: tuple[int, int], size: tuple[int, int], box: Box) -> None:
        self.same = small == size
        top, height, self._y = _taps(small[0], size[0], box.top, box.height)
        left, width, self._x = _taps(small[1], size[1], box.left, box.width)
        self.inner = box if self.same else Box(top, left, height, width)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the box [..., h, w] of the large picture, float32, from the inner box of the small one; `x` itself if sizes are equal."""
        if self.same:
            return x
        (y0, y1, dy), (x0, x1, dx) = self._y, self._x
        x = x.astype(np.float32)
        x = x[..., y0, :] * (1 - dy)[:, None] + x[..., y1, :] * dy[:, None]
        return x[..., x0] * (1 - dx) + x[..., x1] * dx


def _taps(small: int, full: int, begin: int, length: int) -> tuple[int, int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return first pixel and number of pixels needed of one side, then lower and upper neighbour and weight of the upper, [length] each."""
    positions = np.clip((np.arange(begin, begin + length) + 0.5) * (small / full) - 0.5, 0, small - 1)
    low = np.floor(positions).astype(int)
    high, share = np.minimum(low + 1, small - 1), (positions - low).astype(np.float32)
    return int(low[0]), int(high[-1] - low[0] + 1), (low - low[0], high - low[0], share)
