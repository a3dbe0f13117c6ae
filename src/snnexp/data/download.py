"""Fetching one file: resumed where it broke off, verified, and only then given its name."""

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
from snnexp.data.progress import progress
from snnexp.errors import MissingData, UserError
from snnexp.files import to_disk

ROUNDS = 3
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 18


def fetch(urls: Sequence[str], path: Path, md5: str | None) -> Path:
    """Download `path` from the first of `urls` that answers, unless it is there; what came of it before is continued.

    Until its md5 is right the file is called `<path>.part`. Where no md5 is published (None) the file is taken at the length that the
    server names, a zip if it is one at all, and whoever reads it has to check what it holds. Processes that want the same file wait for
    the first one.

    Raises: MissingData if no address answers (the next call goes on where this one stopped), UserError for a wrong md5, for what is no
    zip or for a full disk.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with lock(path.with_name(path.name + ".lock"), f"download of {path.name}"):
            if path.exists():
                return path
            continued = part.exists()
            receive_from_any(urls, part, path)
            found = md5_of(part) if md5 else None
            if found != md5 and continued:
                # The beginning may have come from another version of the file: once again from byte 0.
                part.unlink()
                receive_from_any(urls, part, path)
                found = md5_of(part)
            if found != md5:
                part.unlink()
                raise UserError(
                    f"{path.name} from {urls[0]} has md5 {found}, published is {md5}. It was not kept. Try again; "
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
                to_disk(file)
            os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Make room or choose another directory (data_dir=DIR); "
            "what was fetched so far is kept and continued."
        ) from error
    return path


def receive_from_any(urls: Sequence[str], part: Path, path: Path) -> None:
    """Try the addresses in turn, several rounds; every attempt continues what the one before it left."""
    said = ""
    for attempt in range(ROUNDS * len(urls)):
        if attempt >= len(urls):
            time.sleep(PAUSE_SECONDS)
        url = urls[attempt % len(urls)]
        try:
            receive(url, part)
            return
        except urllib.error.HTTPError as error:
            said = f"{url}: HTTP {error.code} {error.reason}"
            if 400 <= error.code < 500 and error.code not in (408, 416, 429) and len(urls) == 1:
                break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            said = f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}"
    have = part.stat().st_size if part.exists() else 0
    raise MissingData(
        f"{path.name} could not be fetched ({said}). {have} bytes are kept; the same command goes on from there. "
        f"Or get the file by hand and put it at {path}."
    )


def receive(url: str, part: Path) -> None:
    """Append to `part` what is missing of `url`, or write all of it where the server cannot give a part.

    Raises: HTTPError, URLError, ConnectionError if the answer ends early.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "snnexp"} | ({"Range": f"bytes={have}-"} if have else {}))
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if whole and int(whole[1]) == have:
            return  # nothing is missing
        part.unlink()
        raise
    with answer:
        if answer.status not in (200, 206) or answer.headers.get_content_type() == "text/html":
            raise ConnectionError(f"answered with {answer.status} and {answer.headers.get_content_type()}, not with the file")
        said_range = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if answer.status == 206 and not (said_range and int(said_range[1]) == have):
            part.unlink(missing_ok=True)
            raise ConnectionError(f"asked from byte {have}, got {answer.headers.get('Content-Range')}")
        whole_again = bool(have) and answer.status == 200
        target = part.with_name(part.name + ".again") if whole_again else part  # what is there stays until there is more
        have = 0 if whole_again else have
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        try:
            with open(target, "ab" if have else "wb") as file, progress(f"Fetching {part.stem}", total, "bytes") as advance:
                advance(have)
                while chunk := read_chunk(answer):
                    file.write(chunk)
                    advance(len(chunk))
        finally:
            got = target.stat().st_size
            if whole_again and (got > part.stat().st_size or got and got == total):
                os.replace(target, part)
            elif whole_again:
                target.unlink()
    if not got or total is not None and got < total:
        raise ConnectionError(f"the connection ended at byte {got}" + (f" of {total}" if total else ""))


def read_chunk(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes of an answer.

    Raises: ConnectionError for whatever the network does, which must not be taken for the disk's fault.
    """
    try:
        return answer.read(CHUNK)
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from error


def md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
