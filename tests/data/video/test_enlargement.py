"""A box of an enlarged picture."""

import numpy as np

from snnexp.data.video.enlargement import Enlargement
from snnexp.data.video.spike_camera import Box


def test_a_box_of_it_is_that_of_the_whole() -> None:
    picture = np.random.default_rng(0).random((10, 8))
    full = Enlargement((10, 8), (20, 24), Box(0, 0, 20, 24))(picture)
    part = Enlargement((10, 8), (20, 24), box := Box(5, 9, 7, 11))
    assert part.inner.height < 7 and np.array_equal(part(picture[part.inner.rows, part.inner.columns]), full[box.rows, box.columns])
