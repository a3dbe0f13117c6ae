import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from snnexp.data.listing import (
    LeftOut,
    by_stem,
    cache_folder,
    is_ours,
    list_folder,
    make_working_folder,
    natural_key,
    order_settings,
    readable,
)
from snnexp.data.source_files import files_in_zip, find_class_folders
from snnexp.errors import UserError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_numbers_count_and_equal_ones_are_told_apart_by_their_letters() -> None:
    names = ["a10", "a2", "a02", "a002", "1", "01", "b", "10", "9", "", "²", "x²", "٣", "3", "7" * 5000, "1_2", "1_02"]
    ordered = sorted(names, key=natural_key)
    for seed in range(20):
        random.Random(seed).shuffle(names)
        assert sorted(names, key=natural_key) == ordered
    assert [name for name in ordered if name.startswith("a")] == ["a002", "a02", "a2", "a10"]
    assert [name for name in ordered if name.isascii() and name.isdigit() and len(name) < 9] == ["01", "1", "3", "9", "10"]
    assert ordered.index("9") < ordered.index("7" * 5000) and ordered.index("٣") == ordered.index("3") + 1


def test_only_an_order_that_numbers_do_not_tell_enters_the_key_of_a_cache() -> None:
    assert order_settings(["a1", "a2"], ["a1"]) == {} and order_settings([]) == {}
    assert order_settings(["a1", "a2"], ["b1", "b01"]) == {"order": "number, name"}


def test_the_order_does_not_depend_on_the_process_or_the_disk(tmp_path: Path) -> None:
    for name in ("1", "01", "001", "1a", "01a"):
        touch(tmp_path / "train" / name / "7.png", tmp_path / "test" / name / "07.png")
    program = (
        "import sys; from pathlib import Path; from snnexp.data.source_files import find_class_folders;"
        "found = find_class_folders(Path(sys.argv[1]), ['.png'], 'images'); print(found.classes, found.order)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert outputs == {"('001', '01', '1', '01a', '1a') {'order': 'number, name'}\n"}


def test_what_is_left_out_is_counted_in_one_line(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.PNG", tmp_path / "a" / "2.png", tmp_path / "a" / "._2.png", tmp_path / "a" / ".DS_Store")
    touch(tmp_path / "a" / "3.heic", tmp_path / "a" / "notes.txt", tmp_path / "a" / "deep" / "4.png", tmp_path / "5.png")
    touch(tmp_path / "b" / "1.png", tmp_path / "__MACOSX" / "1.png", tmp_path / ".git" / "1.png")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "loop.png").symlink_to(tmp_path / "a" / "loop.png")
    (tmp_path / "b" / "linked.png").symlink_to(tmp_path / "5.png")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    found = find_class_folders(tmp_path, [".png"], "images")
    assert [file.name for file in found.files_of_part["all"]] == ["a/1.PNG", "a/2.png", "b/1.png", "b/linked.png"]
    assert found.classes == ("a", "b") and found.left_out.in_words() == (
        "left out: 1 hidden folder (.git), 1 file outside the class folders (5.png), 1 folder __... (__MACOSX), "
        "2 files of other kinds (a/3.heic, ...), 1 hidden file (a/._2.png), 2 links that lead nowhere (a/gone.png, ...), "
        "1 deeper folder (a/deep), 1 thing that is no file (b/pipe.png)"
    )


def test_what_is_odd_about_the_classes_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "a" / "1.png")
    assert find_class_folders(tmp_path / "one", [".png"], "images").left_out.in_words() == (
        "a single class (a): there is nothing to tell apart"
    )
    touch(*(tmp_path / "more" / name / "1.png" for name in ("train/a", "train/b", "test/a", "test/c", "val/d")))
    assert find_class_folders(tmp_path / "more", [".png"], "images").left_out.in_words() == (
        "2 of 4 classes only outside train, so they are not learned (c, d)"
    )
    touch(tmp_path / "judged" / "test" / "a" / "1.png", tmp_path / "judged" / "test" / "b" / "1.png")
    assert find_class_folders(tmp_path / "judged", [".png"], "images").left_out.in_words() == ""


def test_an_empty_class_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png", tmp_path / "b" / "1.heic")
    (tmp_path / "b" / "2.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"b holds no images \(\.png\); left out: 1 file of another kind \(b/1\.heic\), 1 link that leads"):
        find_class_folders(tmp_path, [".png"], "images")


@pytest.mark.parametrize("name", ["cache", "download", "extract"])
def test_a_class_may_have_the_name_of_a_folder_of_ours(name: str, tmp_path: Path) -> None:
    touch(tmp_path / name / "1.png", tmp_path / "dog" / "1.png")
    for _ in range(2):
        assert set(find_class_folders(tmp_path, [".png"], "images").classes) == {name, "dog"}
        make_working_folder(cache_folder(tmp_path))
    assert (tmp_path / (".snnexp-cache" if name == "cache" else "cache") / ".snnexp").exists()


def test_our_folders_are_known_by_a_mark_or_by_all_that_they_hold(tmp_path: Path) -> None:
    key = "0123456789abcdef"
    make_working_folder(tmp_path / "cache")
    touch(tmp_path / "cache" / "Thumbs.db")
    assert is_ours(tmp_path / "cache") and cache_folder(tmp_path) == tmp_path / "cache"
    earlier = tmp_path / "earlier" / "cache"
    touch(earlier / key / "meta.json", earlier / f"{key}.lock", earlier / ".building-x" / "samples.npy")
    assert is_ours(earlier) and cache_folder(tmp_path / "earlier") == earlier
    make_working_folder(earlier)
    assert (earlier / ".snnexp").exists()
    both = tmp_path / "both" / "cache"
    touch(both / key / "meta.json", both / "cat.png")
    assert not is_ours(both) and cache_folder(tmp_path / "both") == tmp_path / "both" / ".snnexp-cache"
    make_working_folder(both)
    assert not (both / ".snnexp").exists()
    touch(tmp_path / "download" / "a.zip", tmp_path / "download" / "a.zip.lock", tmp_path / "download" / "b.zip.part")
    assert not is_ours(tmp_path / "download")
    touch(tmp_path / "download" / "b.zip.lock")
    assert is_ours(tmp_path / "download") and list_folder(tmp_path, ()).folders == ["both", "earlier"]


def test_files_that_lie_in_a_folder_of_ours_are_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png", tmp_path / "b" / "1.png")
    make_working_folder(tmp_path / "cache")
    assert find_class_folders(tmp_path, [".png"], "images").left_out.in_words() == ""
    touch(tmp_path / "cache" / "2.PNG", tmp_path / "cache" / "1.png")  # a class that came later, say
    found = find_class_folders(tmp_path, [".png"], "images")
    assert found.classes == ("a", "b")
    assert found.left_out.in_words() == "left out: 2 files in working folders of snnexp (cache/1.png, ...)"


def test_links_that_lead_in_a_circle_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path / "set" / "a" / "1.png", tmp_path / "set" / "b" / "1.png", tmp_path / "elsewhere" / "1.png")
    for link, target in (("set/here", "."), ("set/up", ".."), ("set/a/around", "../../set"), ("set/c", "../elsewhere")):
        (tmp_path / link).symlink_to(target)
    found = find_class_folders(tmp_path / "set", [".png"], "images")
    assert found.classes == ("a", "b", "c")
    assert found.left_out.in_words() == "left out: 3 links to folders above them (here, ...)"


def test_a_file_that_is_in_the_set_twice_by_a_link_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "b" / "1.png", tmp_path / "test" / "a" / "1.png")
    (tmp_path / "test" / "b").symlink_to("../train/b")
    assert find_class_folders(tmp_path, [".png"], "images").left_out.remarks == [
        "1 file is another one of the set by a link (train/b/1.png is test/b/1.png)"
    ]
    os.link(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "b" / "2.png")
    remark = find_class_folders(tmp_path, [".png"], "images").left_out.remarks[0]
    assert remark == "3 files are others of the set by a link (train/a/1.png is test/b/2.png, ...)"


def test_classes_that_would_be_called_alike_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png", tmp_path / os.fsdecode(b"\xff") / "1.png", tmp_path / "\\xff" / "1.png")
    with pytest.raises(UserError, match=r"two classes would both be called \\xff\. Rename"):
        find_class_folders(tmp_path, [".png"], "images")


def test_a_split_folder_without_classes_is_counted(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "b" / "1.png", tmp_path / "test" / ".keep")
    found = find_class_folders(tmp_path, [".png"], "images")
    assert found.left_out.in_words() == "left out: 1 split folder without classes (test)" and found.files_of_part["test"] == []


def test_two_files_that_would_be_one_are_named(tmp_path: Path) -> None:
    assert by_stem(tmp_path, ["1.png", "01.png", "1.b.PNG"], [".png", ".jpg"]) == {"1": "1.png", "01": "01.png", "1.b": "1.b.PNG"}
    with pytest.raises(UserError, match=r"1\.png and .*1\.JPG would be one sample"):
        by_stem(tmp_path, ["1.png", "2.png", "1.JPG"], [".png", ".jpg"])
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("x/1.bin", "x/2.bin", "x/1.bin"):
            archive.writestr(name, name)
    with pytest.raises(UserError, match=r"a\.zip holds x/1\.bin and x/1\.bin, which would be one sample"):
        files_in_zip(tmp_path / "a.zip", [".bin"], lambda name: 0)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in ("x/1.bin", "y/1.bin", "__MACOSX/x/._1.bin", "__MACOSX/x/1.bin"):
            archive.writestr(name, name)
        archive.writestr("x/readme.txt", "")
        archive.writestr("z/1.bin", "")
    left_out = LeftOut()
    files = files_in_zip(tmp_path / "b.zip", [".bin"], lambda name: {"x": 0, "y": 1}.get(name[0]), left_out)
    assert [file.name for file in files] == ["x/1.bin", "y/1.bin"]
    assert left_out.in_words() == (
        "left out: 2 hidden files (b.zip:__MACOSX/x/._1.bin, ...), 1 file of another kind (b.zip:x/readme.txt), "
        "1 file outside the class folders (b.zip:z/1.bin)"
    )


def test_any_name_is_listed_and_can_be_printed(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"line\nbreak", b"\x1b[31mred", "é ü".encode(), b"a" * 200, b"-x=$(y) {clip}", b"\\xff"]
    for name in names:
        touch(tmp_path / os.fsdecode(name) / os.fsdecode(name + b".png"))
    found = find_class_folders(tmp_path, [".png"], "images")
    assert {os.fsencode(file.path.parent.name) for file in found.files_of_part["all"]} == set(names)
    assert {"\\xff\\xfe", "line\\nbreak", "\\x1b[31mred", "é ü", "-x=$(y) {clip}"} <= set(found.classes)
    assert "\n".join(found.classes).encode().count(b"\n") == len(names) - 1


def test_a_link_that_leads_nowhere_is_named_where_a_missing_file_matters(tmp_path: Path) -> None:
    touch(tmp_path / "1.dat")
    (tmp_path / "2.dat").symlink_to("lost.dat")
    left_out = LeftOut()
    listing = list_folder(tmp_path, [".dat"], left_out)
    assert listing.files == ["1.dat"] and left_out.in_words() == "left out: 1 link that leads nowhere (2.dat)"
    with pytest.raises(UserError, match=r"2\.dat is a link to lost\.dat, which is not there"):
        listing.check_links()
    listing.check_links(lambda name: name.startswith("1"))


def test_a_folder_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none cannot be looked at"):
        list_folder(tmp_path / "none", [".png"])


def test_readable_leaves_printable_names_as_they_are() -> None:
    assert [readable(name) for name in ("a b", "ü\xa0x", "日本", "tab\t")] == ["a b", "ü\xa0x", "日本", "tab\\t"]
