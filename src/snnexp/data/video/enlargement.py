"""Small pictures enlarged to the size of others, as the spikes of a camera with fewer pixels are."""

import numpy as np

from snnexp.data.video.spike_camera import Box


class Enlargement:
    """Pictures of `small` pixels enlarged to `size` (height, width), of which only `box` is wanted: bilinear, pixel centres correspond.

    `inner` is the box of the small picture that it takes.
    """

    def __init__(self, small: tuple[int, int], size: tuple[int, int], box: Box) -> None:
        self.same = small == size
        top, height, self._y = _taps(small[0], size[0], box.top, box.height)
        left, width, self._x = _taps(small[1], size[1], box.left, box.width)
        self.inner = box if self.same else Box(top, left, height, width)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The box [..., h, w] of the large picture, float32, from the inner box of the small one; the very same if there is no change."""
        if self.same:
            return x
        (y0, y1, dy), (x0, x1, dx) = self._y, self._x
        x = x.astype(np.float32)
        x = x[..., y0, :] * (1 - dy)[:, None] + x[..., y1, :] * dy[:, None]
        return x[..., x0] * (1 - dx) + x[..., x1] * dx


def _taps(small: int, full: int, begin: int, length: int) -> tuple[int, int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    at = np.clip((np.arange(begin, begin + length) + 0.5) * (small / full) - 0.5, 0, small - 1)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, small - 1), (at - low).astype(np.float32)
    return int(low[0]), int(high[-1] - low[0] + 1), (low - low[0], high - low[0], share)
