import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snnexp.data.pictures import check_decoding, convert, open_picture, upright_size
from snnexp.errors import UserError

RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


def decoded(image: Image.Image, format: str, mode: str = "L", decoding: int = 2, **options) -> np.ndarray:
    """The values of a picture after it was saved in a format and read again."""
    file = io.BytesIO()
    image.save(file, format, **options)
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        size = upright_size(opened, decoding)
        converted = convert(opened, mode, decoding, "here.png")
    assert converted.size[::-1] == size and converted.mode == mode
    return np.asarray(converted)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_are_scaled(format: str, mode: str) -> None:
    values = decoded(Image.fromarray(RAMP), format, mode)
    expected = np.arange(256).reshape(16, 16)
    assert np.array_equal(values, expected if mode == "L" else np.repeat(expected[..., None], 3, axis=2))
    assert (decoded(Image.fromarray(RAMP), format, mode, decoding=1) == 255).mean() > 0.99  # as runs made before saw them


def test_a_grey_picture_of_sixteen_bits_is_the_same_in_colour() -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    file = b"P6 8 8 65535\n" + np.repeat(grey[..., None], 3, axis=2).astype(">u2").tobytes()
    with Image.open(io.BytesIO(file)) as colour:
        in_colour = np.asarray(convert(colour, "RGB", 2, "x")).astype(int)
    assert np.abs(in_colour[..., 0] - decoded(Image.fromarray(grey), "PNG")).max() <= 1  # Pillow rounds this format


def tiff(values: np.ndarray, bits: int, sample_format: int = 1, photometric: int = 1, orientation: int = 1) -> bytes:
    """A plain little-endian TIFF of one strip."""
    height, width = values.shape[:2]
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (274, orientation)]
    tags += [(277, 1), (278, height)]
    tags += [(279, values.nbytes), (339, sample_format)]
    content = values.tobytes()
    head = b"II*\0" + (8 + len(content)).to_bytes(4, "little")
    entries = b"".join(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in tags)
    return head + content + len(tags).to_bytes(2, "little") + entries + bytes(4)


def read(data: bytes, mode: str = "L", decoding: int = 2) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(convert(image, mode, decoding, "scan.tif"))


def test_a_tiff_with_white_as_0_and_one_of_12_bits() -> None:
    assert np.array_equal(read(tiff(RAMP, 16)), np.arange(256).reshape(16, 16))
    assert np.array_equal(read(tiff(RAMP, 16, photometric=0)), 255 - np.arange(256).reshape(16, 16))
    pairs = np.array([[0, 4095], [2048, 16]], dtype=int).reshape(-1, 2)  # two values in three bytes
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    data = tiff(np.frombuffer(packed, dtype=np.uint8).reshape(2, 3), 12)
    data = data.replace((256).to_bytes(2, "little") + b"\4\0\1\0\0\0\3", (256).to_bytes(2, "little") + b"\4\0\1\0\0\0\2")
    assert read(data).tolist() == [[0, 255], [128, 1]]


@pytest.mark.parametrize(
    ("dtype", "bits", "sample_format", "word"),
    [
        (np.float32, 32, 3, "floating-point"),
        (np.int16, 16, 2, "signed whole"),
        (np.int32, 32, 2, "signed whole"),
        (np.uint32, 32, 1, "32-bit"),
        (np.int8, 8, 2, "signed whole"),
    ],
)
def test_values_without_a_natural_range_are_refused_by_name(dtype: type, bits: int, sample_format: int, word: str) -> None:
    with pytest.raises(UserError, match=rf"scan\.tif: a picture of {word} values \(TIFF, mode .+\).*Save it with 8 or 16 bits"):
        read(tiff((np.ones((4, 4)) * 100).astype(dtype), bits, sample_format))


def test_a_file_of_floating_point_numbers_is_refused() -> None:
    data = b"Pf\n4 4\n-1.0\n" + np.linspace(0, 1, 16, dtype="<f4").tobytes()
    with pytest.raises(UserError, match=r"floating-point values \(PPM, mode F\)"):
        read(data)


def test_palette_alpha_and_cmyk_stay_as_they_were() -> None:
    chance = np.random.default_rng(0)
    colour = Image.fromarray(chance.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    alpha = Image.fromarray(chance.integers(0, 256, (12, 12, 4), dtype=np.uint8), "RGBA")
    pictures = [
        (colour.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        (colour.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        (alpha, "PNG"),
        (alpha.convert("LA"), "PNG"),
        (colour.convert("CMYK"), "TIFF"),
        (colour.convert("CMYK"), "JPEG"),
        (colour.convert("1"), "PNG"),
        (colour.convert("L"), "BMP"),
        (colour, "WEBP"),
    ]
    for picture, format in pictures:
        for mode in ("L", "RGB"):
            assert np.array_equal(decoded(picture, format, mode), decoded(picture, format, mode, decoding=1)), (format, picture.mode, mode)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_an_orientation_is_applied(format: str, number: int) -> None:
    corners = np.zeros((16, 32), dtype=np.uint8)  # one corner bright, the next one grey
    corners[:8, :8], corners[:8, 24:] = 255, 128
    exif = Image.Exif()
    exif[0x0112] = number
    options = {"exif": exif} | ({"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {})
    values = decoded(Image.fromarray(corners), format, **options)
    upright = {
        1: corners,
        2: corners[:, ::-1],
        3: corners[::-1, ::-1],
        4: corners[::-1],
        5: corners.T,
        6: np.rot90(corners, -1),
        7: corners[::-1, ::-1].T,
        8: np.rot90(corners),
    }[number]
    assert values.shape == upright.shape and np.abs(values.astype(int) - upright).max() <= 8


@pytest.mark.parametrize("depth", [1, 257])
def test_a_plain_tiff_on_its_side_is_read_from_its_file(depth: int, tmp_path: Path) -> None:
    """Of a file that Pillow opens itself, it maps the pixels with the sides of the picture that is upright."""
    wide = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16)
    (tmp_path / "1.tif").write_bytes(
        tiff(wide.astype(np.uint8 if depth == 1 else np.uint16) * depth, 8 if depth == 1 else 16, orientation=6)
    )
    with open_picture(tmp_path / "1.tif") as image:
        assert upright_size(image, 2) == (16, 8)
        assert np.array_equal(np.asarray(convert(image, "L", 2, "x")), np.rot90(wide, -1))


def planar() -> bytes:
    """A TIFF of 16 bits whose colours lie one after the other: three strips of the same ramp."""
    content = RAMP.tobytes() * 3
    place = 8 + len(content)
    longs = {258: (16, 16, 16), 273: (8, 520, 1032), 279: (512, 512, 512)}
    tags = {256: (16,), 257: (16,), 258: 3, 259: (1,), 262: (2,), 273: 3, 277: (3,), 278: (16,), 279: 3, 284: (2,)}
    entries, more = b"", b""
    for tag, value in tags.items():
        if tag in longs:
            number, field = 3, place + len(more)
            more += b"".join(entry.to_bytes(4, "little") for entry in longs[tag])
        else:
            number, field = 1, value[0]
        entries += tag.to_bytes(2, "little") + b"\4\0" + number.to_bytes(4, "little") + field.to_bytes(4, "little")
    head = b"II*\0" + (place + len(more)).to_bytes(4, "little")
    return head + content + more + len(tags).to_bytes(2, "little") + entries + bytes(4)


def test_colours_of_sixteen_bits_one_after_the_other_are_refused() -> None:
    with pytest.raises(UserError, match=r"scan\.tif: its channels of more than 8 bits lie one after the other .*planar configuration 1"):
        read(planar(), "RGB")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_orientation_that_cannot_be_read_says_nothing() -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(4, 16))
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01"):
        assert decoded(grey, "PNG", exif=exif).shape == (4, 16)


def test_a_way_of_decoding_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"dataset\.decoding is 3; allowed are 2, and 1"):
        check_decoding(3)


def changes_of(image: Image.Image, format: str = "PNG", **options) -> list[str]:
    file, changes = io.BytesIO(), []
    image.save(file, format, **options)
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        convert(opened, "RGB", 2, "x", changes)
    return changes


def test_what_was_done_to_a_picture_is_said() -> None:
    grey = Image.fromarray(RAMP >> 8).convert("L")
    opaque = grey.convert("RGBA")
    assert changes_of(grey) == changes_of(opaque) == changes_of(grey.convert("P")) == changes_of(grey, "BMP") == []
    transparent = ["with transparency, which is dropped"]
    assert changes_of(Image.merge("LA", [grey, grey])) == transparent
    assert changes_of(grey.convert("P"), transparency=bytes(range(256))) == changes_of(grey, "GIF", transparency=3) == transparent
    scaled = "of more than 8 bits scaled"
    assert changes_of(Image.fromarray(RAMP)) == changes_of(Image.fromarray(RAMP), "TIFF") == [scaled]
    dark = "of 16 bits almost black, below a sixteenth of the range (12 bits saved as 16?)"
    assert changes_of(Image.fromarray(RAMP >> 4)) == [scaled, dark]
    assert changes_of(Image.fromarray(RAMP * 0)) == [scaled]
    assert changes_of(grey, "GIF", save_all=True, append_images=[grey.rotate(90)]) == ["taken as the first of several in a file"]


def test_colours_of_sixteen_bits_are_counted_too() -> None:
    """Pillow itself takes the higher 8 of them."""
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in RAMP)
    chunks = [(b"IHDR", (16).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])), (b"gAMA", (100000).to_bytes(4, "big"))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"".join(len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks)
    changes: list[str] = []
    with Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + png)) as image:
        values = np.asarray(convert(image, "RGB", 2, "x", changes))
    assert changes == ["of more than 8 bits scaled"] and np.array_equal(values[..., 1], RAMP >> 8)  # gAMA changes nothing


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>404", "it is text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is PostScript"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(99), "it is a picture of HEIF"),
        (b"no picture", "it begins like none of PNG, JPEG"),
        (tiff(np.ones((4, 4)), 64, 3), r"a TIFF of a kind that Pillow does not read, or a broken one \(unknown pixel mode\)"),
        (b"P6 0 0 255\n", "a PPM of a kind that Pillow does not read, or a broken one"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"1\.png: no picture that can be read: {words}.*\. Replace it"), open_picture(tmp_path / "1.png"):
        pass


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "BMP", "TIFF", "JPEG"])
def test_a_broken_picture_gives_one_message(format: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8))
    file, path, refused = io.BytesIO(), tmp_path / "1.png", 0
    picture.save(file, format, **({"save_all": True, "append_images": [picture.rotate(90)]} if format == "GIF" else {}))
    whole = read(file.getvalue(), "RGB")
    for length in range(0, len(file.getvalue()), 7):
        path.write_bytes(file.getvalue()[:length])
        try:
            with open_picture(path) as image:
                values = np.asarray(convert(image, "RGB", 2, "1.png", []))
        except UserError as error:
            refused += 1
            assert str(error).startswith((f"{path}: no whole picture", f"{path}: no picture"))
        else:
            assert np.array_equal(values, whole)  # only what follows the pixels, or the first picture, is missing
    assert refused >= len(file.getvalue()) // 7 // 3


def test_a_picture_far_larger_than_its_file_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def png(side: int, colour: int) -> bytes:
        chunk = side.to_bytes(4, "big") * 2 + bytes([8 if colour else 1, colour, 0, 0, 0])
        return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + chunk + zlib.crc32(b"IHDR" + chunk).to_bytes(4, "big") + b"\0\0\0\0IDAT" + bytes(4)

    path = tmp_path / "1.png"
    path.write_bytes(png(12000, 2) + bytes(1000))
    with pytest.raises(UserError, match=r"1\.png is too large for a picture \(it unpacks from 1,0\d\d to 432,000,000 bytes"):
        with open_picture(path) as image:
            image.load()
    path.write_bytes(png(20000, 2))
    with pytest.raises(UserError, match=r"1\.png is too large for a picture \(Image size \(400000000 pixels"), open_picture(path):
        pass
    for side, colour in ((12000, 0), (4000, 2)):  # a page of two colours, and a plain picture, may be as small
        path.write_bytes(png(side, colour))
        with open_picture(path) as image:
            assert image.size == (side, side)
