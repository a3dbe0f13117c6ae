"""Pictures as 8 bits a channel, whatever their depth, upright by their EXIF orientation."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from snnexp.data.file_formats import format_of
from snnexp.data.listing import readable
from snnexp.errors import UserError
from snnexp.untrusted.archives import check_member
from snnexp.untrusted.trees import TooLarge

if TYPE_CHECKING:
    from PIL import Image

DECODING = 2
"""The way pictures are decoded now; 1, of earlier runs: EXIF orientation ignored, and values of more than 8 bits cut off at 255."""
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
"""The formats that are read, whatever a file's ending says; Pillow knows others, of which PostScript would be run as a program."""
BROKEN = (OSError, EOFError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, RuntimeError, struct.error, zlib.error)
"""What Pillow raises for broken pictures; SyntaxError is its word for a broken PNG."""
ORIENTATION = 0x0112  # the EXIF tag
BITS, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 259, 262, 284, 339  # TIFF tags
DEEP, DARK = "of more than 8 bits scaled", "of 16 bits almost black, below a sixteenth of the range (12 bits saved as 16?)"
TURNED, SEVERAL = "turned upright by EXIF", "taken as the first of several in a file"
TRANSPARENT = "with transparency, which is dropped"
PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
CONVERTIBLE = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
SIXTEEN_BITS = ("PNG", "PPM", "TIFF", "JPEG2000")
"""Formats whose 16-bit pictures reach from 0, black, to the highest number, white; Pillow brings PPM's and JPEG 2000's to that."""

# Pillow warns of EXIF that it cannot read, of pictures nearly too large, of palettes with transparency: nothing that changes what is read.
warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture of one of FORMATS, of which only the header is read yet.

    Raises: UserError if it cannot be read or decoded, or has too many pixels, or far more of them than its size can hold.
    """
    from PIL import Image

    location = readable(str(path))
    try:
        # As a stream, because Pillow would map a file that it opened itself, and read some TIFF on their side wrongly.
        with open(path, "rb") as file, Image.open(file, formats=known_formats()) as image:
            unpacked = image.width * image.height * len(image.getbands()) // (8 if image.mode == "1" else 1)
            check_member("it", unpacked, os.fstat(file.fileno()).st_size)
            yield image
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{location}: no picture that can be read: {why_not_read(path)}. Replace it, by a PNG of 8 or 16 bits say, or remove it."
        ) from error
    except (Image.DecompressionBombError, TooLarge, MemoryError) as error:
        raise UserError(f"{location} is too large for a picture ({error or 'not enough memory'}). Replace or remove it.") from error
    except BROKEN as error:
        raise UserError(
            f"{location}: no whole picture, or packed in a way that Pillow does not know ({error}). Copy it again, or remove it."
        ) from error


def known_formats() -> list[str]:
    """Return those of FORMATS that this Pillow reads: AVIF may be missing."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def why_not_read(path: Path) -> str:
    """Return what a file is, or what Pillow dislikes about it, where Pillow cannot open it."""
    from PIL import Image

    with open(path, "rb") as file:
        head = file.read(256)
        name = format_of(head)
        if not head or name not in (None, "a picture"):
            return f"it is {name or 'empty'}"
        for name in known_formats():
            factory, accept = Image.OPEN[name]
            if accept and accept(head[:16]):
                return f"a {name} of a kind that Pillow does not read, or a broken one ({complaint(factory, file)})"
    return f"it begins like none of {', '.join(known_formats())}"


def complaint(factory: type[Image.Image], file: BinaryIO) -> str:
    """Return why a class of Pillow's for one format cannot open a file."""
    file.seek(0)
    try:
        factory(file, "").close()
    except BROKEN as error:
        return f"unknown number {error}" if isinstance(error, KeyError) else str(error)
    return "unknown reason"


def check_decoding(decoding: int) -> None:
    """Raise UserError for a way of decoding that does not exist."""
    if decoding not in (1, DECODING):
        raise UserError(f"dataset.decoding is {decoding}; allowed are {DECODING}, and 1 as runs made before it had.")


def convert(image: Image.Image, mode: str, decoding: int, location: str, changes: list[str] | None = None) -> Image.Image:
    """Return a picture upright, in `mode` L or RGB: palette, alpha and CMYK as Pillow converts them, 16 bits by their higher 8.

    What was done to it and cannot be seen is added to `changes`, as text that follows a number of pictures.

    Raises: UserError, which begins with `location`, for a picture whose values have no natural range; what Pillow raises for a broken one.
    """
    if decoding == 1:
        return image.convert(mode)
    facts = {SEVERAL: changes is not None and getattr(image, "is_animated", False), DEEP: is_deep(image)}
    image.load()  # a PNG may say its orientation behind its pixels
    turn = orientation(image)
    eight = eight_bits(image, location)
    converted = eight.convert(mode)
    if changes is not None:
        facts |= {TURNED: turn is not None, TRANSPARENT: is_transparent(image)}
        facts[DARK] = facts[DEEP] and 0 < np.max(converted.getextrema()) < 16
        changes += [text for text, holds in facts.items() if holds]
    return converted if turn is None else converted.transpose(turn)


def is_deep(image: Image.Image) -> bool:
    """Return whether a picture that is not loaded yet has more than 8 bits a channel."""
    if image.format == "TIFF":
        return max(_numbers(image.tag_v2, BITS, 1)) > 8
    # Pillow brings 16 bits of a colour to 8 itself; only what its decoder is told still says so.
    return image.mode.startswith("I") or (image.format == "PNG" and any(";16" in str(tile[3]) for tile in image.tile))


def is_transparent(image: Image.Image) -> bool:
    """Return whether any part of a picture is transparent."""
    bands = image.getbands()
    return "transparency" in image.info or (bands[-1] in "Aa" and image.getchannel(len(bands) - 1).getextrema()[0] < 255)


def eight_bits(image: Image.Image, location: str) -> Image.Image:
    """Return a picture with 8 bits a channel, the picture itself if it has them.

    Raises: UserError if it has another depth, and no natural range.
    """
    from PIL import Image

    tags = image.tag_v2 if image.format == "TIFF" else {}
    kind = max(_numbers(tags, SAMPLE_FORMAT, 1))
    if kind > 1 or image.mode == "F":
        refuse(image, location, "signed whole" if kind == 2 else "floating-point")
    if max(_numbers(tags, BITS, 1)) > 8 and _numbers(tags, PLANAR, 1)[0] == 2 and _numbers(tags, COMPRESSION, 1)[0] == 1:
        raise UserError(
            f"{location}: its channels of more than 8 bits lie one after the other (TIFF, planar configuration 2, no compression), "
            "which Pillow reads wrongly. Save it with the channels of a pixel together (planar configuration 1)."
        )
    if image.mode in CONVERTIBLE:
        return image
    if image.format not in SIXTEEN_BITS or not (image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM")):
        if image.mode == "I":
            refuse(image, location, "32-bit")
        raise UserError(f"{location}: a picture of mode {image.mode} ({image.format}), which is not read. Save it in RGB or grey.")
    bits, black_is_high = min(_numbers(tags, BITS, 16)[0], 16), _numbers(tags, PHOTOMETRIC, 1)[0] == 0
    # The higher byte, which is what Pillow takes of the 16 bits of a colour picture: grey is the same in both.
    values = (np.asarray(image).astype(np.uint32) >> (bits - 8)).clip(max=255).astype(np.uint8)
    return Image.fromarray(255 - values if black_is_high else values)


def _numbers(tags: object, tag: int, default: int) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) and value else (default if isinstance(value, tuple) else value,)


def refuse(image: Image.Image, location: str, values: str) -> None:
    """Raise UserError for a picture of some kind of values, none of which is known to be black or white."""
    raise UserError(
        f"{location}: a picture of {values} values ({image.format}, mode {image.mode}), which do not say what is black and what is white. "
        "Save it with 8 or 16 bits a channel, without sign, or remove it."
    )


def orientation(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a picture upright, by its EXIF orientation; None if it is, or does not say."""
    from PIL import Image

    if image.format == "TIFF":  # Pillow has turned it
        return None
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    if image.format == "PNG" and not PNG_EXIF & image.info.keys():  # Pillow would decode all of it to look behind the pixels
        return None
    try:
        return turns.get(image.getexif().get(ORIENTATION))
    except BROKEN:  # a broken EXIF says nothing then, as other programs take it
        return None


def upright_size(image: Image.Image, decoding: int) -> tuple[int, int]:
    """Return height and width of a picture once it is upright, by its header."""
    from PIL import Image

    turned = decoding != 1 and orientation(image) in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )
    return image.size if turned else image.size[::-1]
