"""reds: the REDS deblurring set of the NTIRE 2019 challenge (Nah et al., CVPRW 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snnexp.data.video_folders import Folders, VideoFolders, subfolders
from snnexp.errors import MissingData, UserError

CLIPS = {"train": 266, "test": 4}
REDS4 = ("000", "011", "015", "020")
"""The training clips that are the test by custom (Wang et al., "EDVR", CVPRW 2019); all others, those of val too, are for training."""
ADDRESS = "https://seungjunnah.github.io/Datasets/reds.html"


class REDS(VideoFolders):
    """REDS: 240 training and 30 validation clips of 100 frames, 1280 x 720 pixels; the test is REDS4, all others are for training.

    Layout: `root`/train/train_{blur,sharp}/<clip>/NNNNNNNN.png and `root`/val/val_{blur,sharp}/..., or without the folders train and val;
    val need not be there, and its clips are called val_<clip>. `test_clips`: names of the test clips; None: REDS4. Spikes from files:
    beside train_blur, train_spike/<clip>/NNNNNNNN.dat or train_spike/<clip>.dat. The other options are those of VideoFolders.

    Raises: MissingData if there are no clips; UserError as VideoFolders does, for a clip that is only blurry or only sharp, or a test
    clip that is not there.
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
        val_fraction: float = 0.05,
    ) -> None:
        root = Path(root)
        super().__init__(
            name="reds",
            title="REDS, test REDS4" if test_clips is None else f"REDS, test {', '.join(test_clips)}",
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
    found: dict[str, list[Folders]] = {"train": [], "test": []}
    names = []
    for part in ("train", "val"):
        home = root / part if (root / part / f"{part}_blur").is_dir() or (root / part / f"{part}_sharp").is_dir() else root
        blurry, sharp = home / f"{part}_blur", home / f"{part}_sharp"
        for name in sorted({*subfolders(blurry), *subfolders(sharp)}):
            for folder in (blurry, sharp):
                if not (folder / name).is_dir():
                    raise UserError(f"{folder / name} is not there, but the clip is in {(sharp if folder is blurry else blurry)}.")
            called = name if part == "train" else f"val_{name}"
            spike = home / f"{part}_spike"
            split = "test" if called in (REDS4 if test_clips is None else test_clips) else "train"
            found[split].append(Folders(called, blurry / name, sharp / name, spike / name, spike / f"{name}.dat"))
            names.append(called)
    if not names:
        raise MissingData(
            f"reds: {root} holds no clips. Get train_blur.zip and train_sharp.zip (val_blur.zip and val_sharp.zip too, if you want all "
            f"266 training clips) from {ADDRESS} (CC BY 4.0) and unpack them, so that there are "
            f"{root / 'train'}/train_{{blur,sharp}}/<clip>/NNNNNNNN.png; or name their place with dataset.root=DIR."
        )
    for name in test_clips or ():
        if name not in names:
            raise UserError(f"dataset.test_clips names {name}, which {root} does not hold; it has {', '.join(names[:12])} ...")
    return found
