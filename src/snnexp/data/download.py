"""Download of one file: resumed where it broke off, verified, and only then given its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from snnexp.data.lock import lock
from snnexp.data.looking import stop_if_only_looking
from snnexp.data.progress import progress
from snnexp.errors import MissingData, UserError
from snnexp.files import flush_to_disk

ROUNDS = 3
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 18


def fetch(urls: Sequence[str], path: Path, md5: str | None) -> Path:
    """Download `path` from the first of `urls` that answers, unless it exists; an earlier, partial download is continued.

    Until its md5 is verified the file is called `<path>.part`. Without a published md5 (None) a file is accepted if it has the length that
    the server names and, if its name ends in .zip, is a zip archive; the reader has to check its content. Processes that want the same
    file wait for the first one.

    Raises: MissingData if no address answers (the next call continues where this one stopped), UserError for a wrong md5, for a .zip that
    is no zip archive or for a full disk.
    """
    if path.exists():
        return path
    stop_if_only_looking()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with lock(path.with_name(path.name + ".lock"), f"download of {path.name}"):
            if path.exists():
                return path
            resumed = part.exists()
            receive_from_any(urls, part, path)
            digest = md5_of(part) if md5 else None
            if digest != md5 and resumed:
                # The beginning may come from another version of the file: start again from byte 0.
                part.unlink()
                receive_from_any(urls, part, path)
                digest = md5_of(part)
            if digest != md5:
                part.unlink()
                raise UserError(
                    f"{path.name} from {urls[0]} has md5 {digest}, published is {md5}. It was not kept. Try again; "
                    f"if that does not help, get the file by hand and put it at {path}."
                )
            if md5 is None and path.suffix == ".zip" and not zipfile.is_zipfile(part):
                size = part.stat().st_size
                part.unlink()
                raise UserError(
                    f"{path.name} from {urls[0]} is no zip archive ({size} bytes; perhaps a web page). It was not kept. Try again; "
                    f"if that does not help, get the file by hand and put it at {path}."
                )
            with open(part, "rb+") as file:
                flush_to_disk(file)
            os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Make room or choose another directory (data_dir=DIR); "
            "what was fetched so far is kept and continued."
        ) from error
    return path


def receive_from_any(urls: Sequence[str], part: Path, path: Path) -> None:
    """Try the addresses in turn, for several rounds; every attempt continues what the previous one left.

    Raises: MissingData if none of them gave the whole file.
    """
    failure = ""
    for attempt in range(ROUNDS * len(urls)):
        if attempt >= len(urls):
            time.sleep(PAUSE_SECONDS)
        url = urls[attempt % len(urls)]
        try:
            receive(url, part)
            return
        except urllib.error.HTTPError as error:
            failure = f"{url}: HTTP {error.code} {error.reason}"
            if 400 <= error.code < 500 and error.code not in (408, 416, 429) and len(urls) == 1:
                break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failure = f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}"
    size = part.stat().st_size if part.exists() else 0
    raise MissingData(
        f"{path.name} could not be fetched ({failure}). {size} bytes are kept; the same command goes on from there. "
        f"Or get the file by hand and put it at {path}."
    )


def receive(url: str, part: Path) -> None:
    """Append to `part` what is missing of `url`, or write all of it if the server cannot send a part.

    Raises: HTTPError, URLError, ConnectionError if the answer ends early.
    """
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "snnexp"} | ({"Range": f"bytes={offset}-"} if offset else {}))
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        size_header = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if size_header and int(size_header[1]) == offset:
            return  # nothing is missing
        part.unlink()
        raise
    with answer:
        if answer.status not in (200, 206) or answer.headers.get_content_type() == "text/html":
            raise ConnectionError(f"answered with {answer.status} and {answer.headers.get_content_type()}, not with the file")
        content_range = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status == 206 and not (content_range and int(content_range[1]) == offset):
            part.unlink(missing_ok=True)
            raise ConnectionError(f"asked from byte {offset}, got {answer.headers.get('Content-Range')}")
        from_start = bool(offset) and answer.status == 200
        target = part.with_name(part.name + ".again") if from_start else part  # the bytes received earlier stay until there are more
        offset = 0 if from_start else offset
        length = answer.headers.get("Content-Length")
        total = offset + int(length) if length else None
        try:
            with open(target, "ab" if offset else "wb") as file, progress(f"Fetching {part.stem}", total, "bytes") as advance:
                advance(offset)
                while chunk := read_chunk(answer):
                    file.write(chunk)
                    advance(len(chunk))
        finally:
            received = target.stat().st_size
            if from_start and (received > part.stat().st_size or received and received == total):
                os.replace(target, part)
            elif from_start:
                target.unlink()
    if not received or total is not None and received < total:
        raise ConnectionError(f"the connection ended at byte {received}" + (f" of {total}" if total else ""))


def read_chunk(answer: http.client.HTTPResponse) -> bytes:
    """Return the next bytes of an answer.

    Raises: ConnectionError for any fault of the network, so that it is not taken for one of the disk.
    """
    try:
        return answer.read(CHUNK)
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from error


def md5_of(path: Path) -> str:
    """Return the md5 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
