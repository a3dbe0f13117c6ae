"""Formats that a file's first bytes name, to refuse a file which is something else than its ending says."""

from __future__ import annotations

import re

# Each at least four bytes long, so that recordings without a header do not begin like this by chance.
FORMATS = (
    (re.compile(rb"#!AER-DAT([\x21-\x7e]{1,8})"), "AEDAT {}"),
    (re.compile(rb"% [a-z_]{3,}[ \r\n]", re.I), "a Prophesee recording"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array (.npy)"),
    (re.compile(rb"PK\x03\x04|PK\x05\x06"), "a zip archive (such as .npz)"),
    (re.compile(rb"\x89HDF\r\n\x1a\n"), "HDF5"),
    (re.compile(rb"MATLAB [57]\.[0-9]"), "a MATLAB file"),
    (re.compile(rb"#ROSBAG"), "a ROS bag"),
    (re.compile(rb"\x89MCAP0"), "MCAP"),
    (re.compile(rb"SQLite format 3"), "an SQLite database (such as a ROS 2 bag)"),
    (re.compile(rb"PAR1|ARROW1|FEA1"), "a Parquet or Arrow table"),
    (re.compile(rb"Event Stream"), "an Event Stream file (.es)"),
    (re.compile(rb"\x80[\2\3](?:[}\]]q\0|\(?c[a-z_]{4})|\x80[\4\5]\x95.{4}\0{4}", re.S), "a Python pickle"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"), "gzip"),
    (re.compile(rb"BZh[1-9]1AY"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz"),
    (re.compile(rb"7z\xbc\xaf"), "7z"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "Zstandard"),
    (re.compile(rb"\x04\x22\x4d\x18"), "LZ4"),
    (re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.S), "a picture of HEIF"),
    (re.compile(rb"\x00\x00\x00\x0cJXL "), "a picture of JPEG XL"),
    (re.compile(rb"8BPS"), "a picture of Photoshop"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"\x89PNG|\xff\xd8\xff[\xdb\xe0-\xef]|GIF8|II[*+]\x00|MM\x00[*+]|RIFF.{4}WEBP|.{4}ftypavi[fs]", re.S), "a picture"),
    (re.compile(rb"RIFF|.{4}ftyp|\x1a\x45\xdf\xa3", re.S), "a film"),
    (re.compile(rb"(?:version |<!DOCTYPE |<html[ >]|<svg[ >]|<\?xml )", re.I), "text"),
    (re.compile(rb"[ \t]*[-+.\d]+(?:[ \t]*[,; \t][ \t]*[-+.\deE]+){2,}\r?\n"), "a table of text"),
)

TEXT = bytes([9, 10, 13, *range(32, 127)])


def format_of(data: bytes) -> str | None:
    """Return the name of the format that the first bytes of a file name, or None if they name none that is known."""
    for pattern, name in FORMATS:
        if found := pattern.match(data[:256]):
            return name.format(*(group.decode("ascii") for group in found.groups()))
    begin = data[:256]
    # Spikes and events can be one byte of text again and again.
    if len(begin) >= 32 and not begin.translate(None, TEXT) and len(set(begin)) >= 8 and set(begin) & set(b" ,\n"):
        return "text"
    return None
