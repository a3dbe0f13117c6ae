"""Random spikes, and small folders of video."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from snnexp.data.video.video_folders import VideoFolders

CONF = Path(__file__).parents[3] / "conf" / "dataset"


def published(name: str, root: Path, **options: Any) -> VideoFolders:
    """The data set of conf/dataset/`name`.yaml below `root`, with options of its own."""
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())["dataset"]
    return VideoFolders(**{key: value for key, value in node.items() if key != "_target_"} | {"seed": 0, "root": root} | options)


def put_clip(blurry: Path, sharp: Path, count: int, size: tuple[int, int] = (12, 16), seed: int = 0, ending: str = "png") -> np.ndarray:
    """Write `count` random frames of each kind, from 000001 on; uint8 [2, count, 3, H, W], blurry and sharp."""
    pictures = np.random.default_rng(seed).integers(0, 256, (2, count, 3, *size), dtype=np.uint8)
    for folder, frames in ((blurry, pictures[0]), (sharp, pictures[1])):
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames, 1):
            Image.fromarray(frame.transpose(1, 2, 0)).save(folder / f"{number:06d}.{ending}")
    return pictures


def some(frames: int = 20, height: int = 6, width: int = 16, rate: float = 0.3, seed: int = 0) -> np.ndarray:
    """Random spike frames uint8 [frames, height, width] of 0 and 1."""
    return (np.random.default_rng(seed).random((frames, height, width)) < rate).astype(np.uint8)
