import io

import numpy as np
import pytest
from PIL import Image

from snnexp.data.pictures import check_decoding, convert, upright_size
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


def tiff(values: np.ndarray, bits: int, sample_format: int = 1, photometric: int = 1) -> bytes:
    """A plain little-endian TIFF of one strip."""
    height, width = values.shape[:2]
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
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


def test_an_orientation_that_cannot_be_read_says_nothing() -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(4, 16))
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01"):
        assert decoded(grey, "PNG", exif=exif).shape == (4, 16)


def test_a_way_of_decoding_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"dataset\.decoding is 3; allowed are 2, and 1"):
        check_decoding(3)
