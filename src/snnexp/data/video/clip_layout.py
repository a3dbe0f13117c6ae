"""Where the clips of a set of video lie: folders of frames named by templates, the parts of the set, and the test clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from snnexp.data.listing import LeftOut, list_folder, natural_key
from snnexp.data.source_files import subfolders
from snnexp.errors import UserError

CLIP, PART = "{clip}", "{part}"


@dataclass(frozen=True)
class Folders:
    """The folders of a clip's frames, and of its spikes, if there are any: a folder of `.dat` files, one for each frame, or one file."""

    name: str
    blurry: Path
    sharp: Path
    spike_folder: Path
    spike_file: Path


@dataclass(frozen=True)
class Layout:
    """Where the frames of a set lie. `blurry`, `sharp` and `spike` are paths of folders, in which {clip} stands for each clip's folder.

    `parts`: the name of each part, for which {part} stands, and a pattern for the names of its clips, {clip} or val_{clip}; without {part}
    in a template there are no parts. `homes`: folders in the root, of which the first that holds clips of a part is used. `test_clips`:
    the names of the test clips, all others are for training; None: those of the part "test". The spikes of a clip may be one file, at the
    path of `spike` with `.dat`.

    Raises: UserError for a template that is not valid.
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
        for part, pattern in self.parts.items():
            if CLIP not in pattern:
                raise UserError(
                    f"dataset.parts names the clips of {part} {pattern!r}; allowed is a name with {CLIP} in it, as {part}_{CLIP}."
                )

    def clips(self, root: Path) -> dict[str, list[Folders]]:
        """Return the clips below `root` by split, "train" and "test", part by part in natural order; empty if there are none.

        Raises: UserError for a clip that is only blurry or only sharp.
        """
        clips_by_split: dict[str, list[Folders]] = {"train": [], "test": []}
        divided = any(PART in template for template in (self.blurry, self.sharp))
        for part, pattern in self.parts.items() if divided else (("", CLIP),):
            for home, name in self.clips_of_part(root, part):
                blurry, sharp, spike = (home / fill_template(template, part, name) for template in (self.blurry, self.sharp, self.spike))
                check_both_exist(blurry, sharp)
                clip = Folders(pattern.replace(CLIP, name), blurry, sharp, spike, spike.with_name(f"{spike.name}.dat"))
                is_test = part == "test" if self.test_clips is None else clip.name in self.test_clips
                clips_by_split["test" if is_test else "train"].append(clip)
        return {split: clips for split, clips in clips_by_split.items() if clips}

    def left_out(self, root: Path) -> LeftOut:
        """Return the folders below `root` that lie beside clips or parts and are neither."""
        left_out = LeftOut()
        templates = (self.blurry, self.sharp, self.spike)
        divided = any(PART in template for template in templates[:2])
        known = {template.replace(PART, part).split("/")[0] for template in templates for part in self.parts} - {CLIP}
        places: dict[Path, set[str]] = {}
        for part in self.parts if divided else ("",):
            for home, name in self.clips_of_part(root, part):
                for template in templates[:2]:
                    before = template.replace(PART, part).partition(CLIP)[0]
                    places.setdefault(home / before, set()).add(name)
                    if PART in template.split("/")[0]:
                        places.setdefault(home, set())
        for place, clips in places.items():
            for name in list_folder(place, (), left_out, place=place.name).folders:
                if name not in clips | known:
                    left_out.add("folder that is no clip", "folders that are no clips", f"{place.name}/{name}")
        return left_out

    def clips_of_part(self, root: Path, part: str) -> Iterator[tuple[Path, str]]:
        """Yield the clips of a part from the first home that has any: that home, and the name of each clip's folder."""
        for home in (root / template.replace(PART, part) for template in self.homes):
            names = {name for template in (self.blurry, self.sharp) for name in clip_folders(home, template.replace(PART, part))}
            if names:
                yield from ((home, name) for name in sorted(names, key=natural_key))
                return


def fill_template(template: str, part: str, clip: str) -> str:
    """Return a template with a part and a clip filled in."""
    return template.replace(PART, part).replace(CLIP, clip)


def clip_folders(home: Path, template: str) -> list[str]:
    """Return the names for {clip} with which a template, its part filled in, is a folder that exists."""
    before, _, after = template.partition(CLIP)
    return [name for name in subfolders(home / before) if (home / before / name / after.strip("/")).is_dir()]


def check_both_exist(blurry: Path, sharp: Path) -> None:
    """Raise UserError for a clip that is only blurry or only sharp."""
    for folder, counterpart in ((blurry, sharp), (sharp, blurry)):
        if not folder.is_dir():
            if blurry.parent == sharp.parent:
                words = f"A clip holds {blurry.name} and {sharp.name}, with frames of the same names."
                raise UserError(f"{folder.parent} has no folder {folder.name}. {words}")
            raise UserError(f"{folder} is not there, but the clip is in {counterpart.parent}.")
