"""Restored frames and strips as files: which, by what name, and what they show."""

import numpy as np
import pytest
import torch
from PIL import Image

from snnexp.contracts import DataSet
from snnexp.data.video.clips import Clips
from snnexp.engine.measures.restored import LABEL, NARROWEST, Frames


class Video(DataSet):
    """Three clips by name."""

    kind = "video"

    def view(self, split):
        assert split == "test"
        return range(3)

    def clip_name(self, split, index):
        return "abc"[index]


def batch(n: int, channels: int, known: list[list[bool]]) -> tuple[Clips, torch.Tensor]:
    torch.manual_seed(n)
    d = len(known[0])
    clips = Clips(
        torch.rand(n, d, channels, 8, 6), torch.rand(n, d, channels, 8, 6), torch.rand(n, d, 2, 8, 6), torch.tensor(known), torch.arange(n)
    )
    return clips, torch.rand(n, d, channels, 8, 6) * 1.2 - 0.1


@pytest.mark.parametrize("channels", [1, 3])
def test_each_judged_frame_and_a_strip_of_each_clip(tmp_path, channels):
    frames = Frames(Video(), "test", None, tmp_path)
    first, restored = batch(2, channels, [[True, True, False], [False, False, False]])
    frames(first, restored)
    frames(*batch(1, channels, [[False, True, True]]))
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert written == ["frames/a/00.png", "frames/a/01.png", "frames/c/01.png", "frames/c/02.png", "strips/a.png", "strips/c.png"]
    pixels = np.asarray(Image.open(tmp_path / "frames/a/01.png")).reshape(8, 6, channels)
    assert np.array_equal(pixels, (restored[0, 1].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    strip, factor = np.asarray(Image.open(tmp_path / "strips/a.png")), 27
    assert strip.shape == (factor * 8 + LABEL, 4 * factor * 6, 3) and factor * 6 >= NARROWEST > (factor - 1) * 6
    strip = strip[LABEL + factor // 2 :: factor, factor // 2 :: factor]
    for place, shown in ((0, first.blurry), (2, restored), (3, first.sharp)):  # the judged frame nearest the middle is 1
        pixels = (shown[0, 1].clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.array_equal(strip[:, 6 * place : 6 * place + 6], pixels)
    rate = first.spikes[0, 1].mean(0)
    spikes = strip[:, 6:12, 0]
    assert spikes.min() == 0 and spikes.max() == 255 and spikes.argmax() == rate.argmax()


def test_a_part_of_a_split_keeps_its_names(tmp_path):
    frames = Frames(Video(), "test", 2, tmp_path)
    frames(*batch(2, 1, [[True], [True]]))
    chosen = np.sort(np.random.Generator(np.random.Philox(0)).permutation(3)[:2])
    assert sorted(path.stem for path in (tmp_path / "strips").iterdir()) == ["abc"[k] for k in chosen]


def test_what_is_no_video_leaves_nothing(tmp_path):
    class Images(DataSet):
        def view(self, split):
            return range(2)

    Frames(Images(), "test", None, tmp_path)((torch.rand(1), torch.rand(1)), torch.rand(1))
    assert list(tmp_path.iterdir()) == []
