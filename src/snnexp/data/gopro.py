"""gopro: the GoPro deblurring set of Nah, Kim, Lee (CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snnexp.data.video_folders import Folders, VideoFolders, subfolders
from snnexp.errors import MissingData, UserError

CLIPS = {"train": 22, "test": 11}
ADDRESS = "https://seungjunnah.github.io/Datasets/gopro.html"


class GoPro(VideoFolders):
    """GOPRO_Large: 22 training and 11 test clips of 1280 x 720 pixels, blurry frames made by averaging 7 to 13 frames at 240 a second.

    Layout: `root`/GOPRO_Large/{train,test}/<clip>/{blur,blur_gamma,sharp}/NNNNNN.png, or without the folder GOPRO_Large. `gamma`: the
    blurry frames of blur_gamma instead of blur. Spikes from files: <clip>/spike/NNNNNN.dat or <clip>/spike.dat.
    The other options are those of VideoFolders.

    Raises: MissingData if there are no clips; UserError as VideoFolders does, or for a clip without blurry or sharp frames.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        seed: int = 0,
        gamma: bool = False,
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
            name="gopro",
            title=f"GoPro, {'blur_gamma' if gamma else 'blur'}",
            original=CLIPS,
            root=root,
            found=clips(root, "blur_gamma" if gamma else "blur"),
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


def clips(root: Path, blurry: str) -> dict[str, list[Folders]]:
    """The clips of the parts that are there. Raises: MissingData, UserError."""
    home = root / "GOPRO_Large" if (root / "GOPRO_Large").is_dir() else root
    found: dict[str, list[Folders]] = {}
    for part in CLIPS:
        for name in subfolders(home / part):
            clip = home / part / name
            for kind in (blurry, "sharp"):
                if not (clip / kind).is_dir():
                    raise UserError(f"{clip} has no folder {kind}. A clip holds {blurry} and sharp, with frames of the same names.")
            found.setdefault(part, []).append(Folders(name, clip / blurry, clip / "sharp", clip / "spike", clip / "spike.dat"))
    if not found:
        raise MissingData(
            f"gopro: {root} holds no clips. Get GOPRO_Large.zip from {ADDRESS} (CC BY 4.0) and unpack it, so that there is "
            f"{root / 'GOPRO_Large'}/{{train,test}}/<clip>/{{{blurry},sharp}}/NNNNNN.png; or name its place with dataset.root=DIR."
        )
    return found
