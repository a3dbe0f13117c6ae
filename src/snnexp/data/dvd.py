"""dvd: the deep video deblurring set of Su et al. (CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snnexp.data.video_folders import Folders, VideoFolders, subfolders
from snnexp.errors import MissingData, UserError

CLIPS = {"train": 61, "test": 10}
TEST = (
    "720p_240fps_2",
    "IMG_0003",
    "IMG_0021",
    "IMG_0030",
    "IMG_0031",
    "IMG_0032",
    "IMG_0033",
    "IMG_0037",
    "IMG_0039",
    "IMG_0049",
)
"""The test clips that the authors named (github.com/shuochsu/DeepVideoDeblurring, issue 2)."""
ADDRESS = "http://www.cs.ubc.ca/labs/imager/tr/2017/DeepVideoDeblurring/"


class DVD(VideoFolders):
    """The quantitative part of the set: 71 clips of 1280 x 720 pixels, of which the authors named 10 for the test.

    Layout: `root`/quantitative_datasets/<clip>/{input,GT}/NNNNN.jpg, or without the folder quantitative_datasets. `test_clips`: names of
    the test clips; None: the ten. Spikes from files: <clip>/spike/NNNNN.dat or <clip>/spike.dat.
    The other options are those of VideoFolders.

    Raises: MissingData if there are no clips; UserError as VideoFolders does, for a clip without input or GT, or a test clip that is not
    there.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        seed: int = 0,
        test_clips: Sequence[str] | None = None,
        frames: int = 6,
        stride: int | None = None,
        spike_source: str = "simulated",
        spike_size: Sequence[int] | None = None,
        theta: float = 1.0,
        sub_frames: int = 8,
        sensor_seed: int = 0,
        spikes: str = "voxel",
        window: int = 25,
        bins: int = 5,
        crop: int = 192,
        crops: int = 1,
        flip: bool = True,
        reverse: bool = True,
        tfp_window: int = 9,
        val_fraction: float = 0.1,
    ) -> None:
        root = Path(root)
        super().__init__(
            name="dvd",
            title="DVD" if test_clips is None else f"DVD, test {', '.join(test_clips)}",
            original=CLIPS,
            root=root,
            found=clips(root, test_clips),
            seed=seed,
            frames=frames,
            stride=stride,
            spike_source=spike_source,
            spike_size=spike_size,
            theta=theta,
            sub_frames=sub_frames,
            sensor_seed=sensor_seed,
            spikes=spikes,
            window=window,
            bins=bins,
            crop=crop,
            crops=crops,
            flip=flip,
            reverse=reverse,
            tfp_window=tfp_window,
            val_fraction=val_fraction,
        )


def clips(root: Path, test_clips: Sequence[str] | None) -> dict[str, list[Folders]]:
    """The clips of train and test. Raises: MissingData, UserError."""
    home = root / "quantitative_datasets" if (root / "quantitative_datasets").is_dir() else root
    names = [name for name in subfolders(home) if (home / name / "input").is_dir() or (home / name / "GT").is_dir()]
    if not names:
        raise MissingData(
            f"dvd: {root} holds no clips. Get DeepVideoDeblurring_Dataset.zip from {ADDRESS} and unpack it, so that there is "
            f"{root / 'quantitative_datasets'}/<clip>/{{input,GT}}/NNNNN.jpg; or name its place with dataset.root=DIR."
        )
    for name in test_clips or ():
        if name not in names:
            raise UserError(f"dataset.test_clips names {name}, which {home} does not hold; it has {', '.join(names)}.")
    found: dict[str, list[Folders]] = {"train": [], "test": []}
    for name in names:
        clip = home / name
        for kind in ("input", "GT"):
            if not (clip / kind).is_dir():
                raise UserError(f"{clip} has no folder {kind}. A clip holds input and GT, with frames of the same names.")
        part = "test" if name in (TEST if test_clips is None else test_clips) else "train"
        found[part].append(Folders(name, clip / "input", clip / "GT", clip / "spike", clip / "spike.dat"))
    return found
