"""Files of `torch.save` that a stranger may have written: no code in them runs, they hold what they are large for, and they end."""

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from snnexp.files import open_regular
from snnexp.untrusted.checksums import check_checksums
from snnexp.untrusted.pickles import check_pickle
from snnexp.untrusted.trees import TooLarge

PICKLES_BEFORE = 5
"""Pickles at the beginning of a file in the format before torch 1.6: a number, the protocol, the machine, the content, its keys."""


def load_plain(file: Path | BinaryIO) -> Any:
    """Return the content of a file of `torch.save`, on the CPU: tensors and plain values.

    Raises: UnpicklingError if it holds anything else, TooLarge if it would grow on reading, ValueError if a checksum differs, or whatever
    torch raises for damaged bytes; no message advises to execute what the file holds.
    """
    import torch

    check_torch_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise type(error)(without_advice(str(error))) from error


def without_advice(text: str) -> str:
    """Return what torch says about a file without its advice on how to execute the file."""
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it names GLOBAL {named[1]}, which is no tensor and no plain value"
    if reason := re.search(r"WeightsUnpickler error:\s*([^\n]*)", text):
        return f"WeightsUnpickler error: {reason[1]}"
    if "TorchScript" in text:
        return "it is a TorchScript program, not what torch.save writes"
    line = re.sub(r"\x1b\[[0-9;]*m", "", next(iter(text.splitlines()), ""))
    return re.split(r"In PyTorch 2\.6|Re-running|This file can still|Please use", line)[0].strip()


def check_torch_file(file: Path | BinaryIO) -> None:
    """Check that a file of `torch.save` is one that ends, is not larger once read than on the disk, and is what was written.

    What is no such file passes: torch says what is wrong with it. Raises: TooLarge; ValueError if a checksum differs; OSError.
    """
    if isinstance(file, Path):
        with open_regular(file) as opened:
            check_torch_file(opened)
        return
    try:
        _check_extent(file)
    except TooLarge:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError, LookupError):
        pass  # no such file, or a damaged one, which the checksums or torch refuse in better words
    check_checksums(file)
    file.seek(0)


def _check_extent(file: BinaryIO) -> None:
    """Raises: TooLarge; what is raised for damaged bytes."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(PICKLES_BEFORE):
            check_pickle(file)
        return
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if (total := sum(entry.file_size for entry in entries)) > size:
            raise TooLarge(f"its {size:,} bytes unpack to {total:,}; torch.save compresses nothing")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                check_pickle(io.BytesIO(archive.read(entry)))
