"""Pictures as 8 bits a channel, whatever their depth, upright by their EXIF orientation."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from snnexp.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

DECODING = 2
"""The way pictures are decoded now; 1, of earlier runs: EXIF orientation ignored, and values of more than 8 bits cut off at 255."""
ORIENTATION = 0x0112  # the EXIF tag
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SEVERAL = "taken as the first of several in a file"
PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
CONVERTIBLE = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
SIXTEEN_BITS = ("PNG", "PPM", "TIFF", "JPEG2000")
"""Formats whose 16-bit pictures reach from 0, black, to the highest number, white; Pillow brings PPM's and JPEG 2000's to that."""


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
    several = changes is not None and getattr(image, "is_animated", False)
    image.load()  # a PNG may say its orientation behind its pixels
    turn = orientation(image)
    eight = eight_bits(image, location)
    if changes is not None:
        facts = {"of more than 8 bits scaled": eight is not image, "turned upright by EXIF": turn is not None, SEVERAL: several}
        changes += [text for text, holds in facts.items() if holds]
    converted = eight.convert(mode)
    return converted if turn is None else converted.transpose(turn)


def eight_bits(image: Image.Image, location: str) -> Image.Image:
    """Return a picture with 8 bits a channel, the picture itself if it has them.

    Raises: UserError if it has another depth, and no natural range.
    """
    from PIL import Image

    tags = image.tag_v2 if image.format == "TIFF" else {}
    kind = max(_numbers(tags, SAMPLE_FORMAT, 1))
    if kind > 1 or image.mode == "F":
        refuse(image, location, "signed whole" if kind == 2 else "floating-point")
    if image.mode in CONVERTIBLE:
        return image
    if image.format not in SIXTEEN_BITS or not (image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM")):
        refuse(image, location, "32-bit" if image.mode == "I" else image.mode)
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return turns.get(image.getexif().get(ORIENTATION))
    except Exception:  # whatever Pillow meets in a broken EXIF: it says nothing then, as other programs take it
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
