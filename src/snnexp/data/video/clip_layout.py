"""Where the clips of a set of video lie: folders of frames named by templates, parts, and which clips are the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from snnexp.data.source_files import natural
from snnexp.errors import UserError

CLIP, PART = "{clip}", "{part}"


@dataclass(frozen=True)
class Folders:
    """Where the frames of a clip lie, and its spikes, if there are any: a folder of `.dat` files, one for each frame, or one file."""

    name: str
    blurry: Path
    sharp: Path
    spike_folder: Path
    spike_file: Path


@dataclass(frozen=True)
class Layout:
    """Where the frames of a set lie. `blurry`, `sharp` and `spike` are paths of folders, in which {clip} stands for each clip's folder.

    `parts`: each part's name, for which {part} stands, and what its clips are called, {clip} or val_{clip}; without {part} in a template
    there are no parts. `homes`: folders in the root, of which the first that holds a part's clips is taken. The test clips are those of
    `test_clips`, all others are for training; None: those of the part "test". The spikes of a clip may be one file: that path with `.dat`.

    Raises: UserError for a template that is none.
    """

    blurry: str
    sharp: str
    spike: str
    parts: Mapping[str, str]
    homes: Sequence[str]
    test_clips: Sequence[str] | None

    def __post_init__(self) -> None:
        for option in ("blurry", "sharp", "spike"):
            template = PurePosixPath(getattr(self, option))
            if template.parts.count(CLIP) != 1 or str(template).count(CLIP) != 1 or template.is_absolute() or ".." in template.parts:
                raise UserError(
                    f"dataset.{option} is {str(template)!r}; allowed is a path below dataset.root in which one folder is called {CLIP}, "
                    f"as in train/{CLIP}/blur."
                )
        for part, called in self.parts.items():
            if CLIP not in called:
                raise UserError(
                    f"dataset.parts names the clips of {part} {called!r}; allowed is a name with {CLIP} in it, as {part}_{CLIP}."
                )

    def clips(self, root: Path) -> dict[str, list[Folders]]:
        """The clips below `root` by split, "train" and "test", part by part in natural order; empty if there are none.

        Raises: UserError for a clip that is only blurry or only sharp, or a test clip that is not there.
        """
        found: dict[str, list[Folders]] = {"train": [], "test": []}
        divided = any(PART in template for template in (self.blurry, self.sharp))
        for part, called in self.parts.items() if divided else (("", CLIP),):
            for home, name in self.there(root, part):
                blurry, sharp, spike = (home / filled(template, part, name) for template in (self.blurry, self.sharp, self.spike))
                both_are_there(blurry, sharp)
                clip = Folders(called.replace(CLIP, name), blurry, sharp, spike, spike.with_name(f"{spike.name}.dat"))
                is_test = part == "test" if self.test_clips is None else clip.name in self.test_clips
                found["test" if is_test else "train"].append(clip)
        return {split: clips for split, clips in found.items() if clips}

    def there(self, root: Path, part: str) -> Iterator[tuple[Path, str]]:
        """The clips of a part, in the first home that has any: that home, and the name of each clip's folder."""
        for home in (root / each.replace(PART, part) for each in self.homes):
            names = {name for template in (self.blurry, self.sharp) for name in clip_folders(home, template.replace(PART, part))}
            if names:
                yield from ((home, name) for name in sorted(names, key=natural))
                return


def filled(template: str, part: str, clip: str) -> str:
    """A template with a part and a clip in it."""
    return template.replace(PART, part).replace(CLIP, clip)


def clip_folders(home: Path, template: str) -> list[str]:
    """The names with which a template, its part filled in, is a folder."""
    before, _, after = template.partition(CLIP)
    return [name for name in subfolders(home / before) if (home / before / name / after.strip("/")).is_dir()]


def both_are_there(blurry: Path, sharp: Path) -> None:
    """Raises: UserError for a clip that is only blurry or only sharp."""
    for folder, other in ((blurry, sharp), (sharp, blurry)):
        if not folder.is_dir():
            if blurry.parent == sharp.parent:
                words = f"A clip holds {blurry.name} and {sharp.name}, with frames of the same names."
                raise UserError(f"{folder.parent} has no folder {folder.name}. {words}")
            raise UserError(f"{folder} is not there, but the clip is in {other.parent}.")


def subfolders(path: Path) -> list[str]:
    """The folders in `path` in natural order; none if it is not there."""
    if not path.is_dir():
        return []
    return sorted((child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__"))), key=natural)
