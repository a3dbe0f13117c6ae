import errno
import hashlib
import http.client
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from snnexp.data import download
from snnexp.data.download import fetch
from snnexp.errors import MissingData, UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 700_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Gives CONTENT on 127.0.0.1; breaks the first `breaks` answers off after 300,000 bytes."""

    def __init__(self, breaks: int = 0, ranges: bool = True, status: int = 200, page: bytes | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks, self.ranges, self.status, self.page = breaks, ranges, status, page
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/file.zip"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        expected = self.headers.get("Range")
        self.server.asked.append(expected)
        if self.server.page is not None:  # a login or a check for robots in the file's place
            self.send_response(self.server.status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(self.server.page)))
            self.end_headers()
            self.wfile.write(self.server.page)
            return
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(expected.removeprefix("bytes=").removesuffix("-")) if expected and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT)
        if self.server.breaks > 0:
            self.server.breaks -= 1
            end = start + 300_000
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)


def test_fetched_verified_and_not_fetched_again(tmp_path) -> None:
    path = tmp_path / "download" / "file.zip"
    with Server() as server:
        for _ in range(2):
            assert fetch([server.url], path, MD5) == path
    assert server.asked == [None] and path.read_bytes() == CONTENT
    assert sorted(p.name for p in path.parent.iterdir()) == ["file.zip", "file.zip.lock"]


def test_broken_download_goes_on_where_it_stopped(tmp_path) -> None:
    with Server(breaks=2) as server:
        fetch([server.url], tmp_path / "file.zip", MD5)
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]


def test_next_call_continues_what_the_last_one_left(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file.zip"
    monkeypatch.setattr(download, "ROUNDS", 1)
    with (
        Server(breaks=99) as server,
        pytest.raises(MissingData, match=r"at byte 300000 of 700000\). 300000 bytes are kept"),
    ):
        fetch([server.url], path, MD5)
    assert not path.exists() and (tmp_path / "file.zip.part").stat().st_size == 300_000
    with Server() as server:
        fetch([server.url], path, MD5)
    assert server.asked == ["bytes=300000-"] and path.read_bytes() == CONTENT


def test_server_that_gives_no_parts(tmp_path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    with Server(ranges=False) as server:
        fetch([server.url], tmp_path / "file.zip", MD5)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_part_that_is_whole_already(tmp_path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    with Server() as server:
        fetch([server.url], tmp_path / "file.zip", MD5)
    assert server.asked == ["bytes=700000-"]


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * 900_000])
def test_part_of_something_else_is_started_again(tmp_path, part: bytes) -> None:
    (tmp_path / "file.zip.part").write_bytes(part)
    with Server() as server:
        fetch([server.url], tmp_path / "file.zip", MD5)
    assert server.asked[-1] is None and (tmp_path / "file.zip").read_bytes() == CONTENT


def test_wrong_checksum_is_not_kept(tmp_path) -> None:
    with Server() as server, pytest.raises(UserError, match=f"has md5 {MD5}, published is 0123"):
        fetch([server.url], tmp_path / "file.zip", "0123")
    assert [p.name for p in tmp_path.iterdir()] == ["file.zip.lock"]


def test_second_address_helps_out(tmp_path) -> None:
    with Server(status=404) as missing, Server() as server:
        fetch([missing.url, server.url], tmp_path / "file.zip", MD5)
    assert len(missing.asked) == len(server.asked) == 1


def test_nobody_answers(tmp_path) -> None:
    with Server(status=404) as missing, pytest.raises(MissingData, match="HTTP 404.*put it at"):
        fetch([missing.url], tmp_path / "file.zip", MD5)
    assert len(missing.asked) == 1  # a wrong address does not get right by asking again
    with pytest.raises(MissingData, match="could not be fetched.*refused"):
        fetch(["http://127.0.0.1:9/file.zip"], tmp_path / "file.zip", MD5)


def test_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "download").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(["http://127.0.0.1:9/file.zip"], tmp_path / "download" / "file.zip", MD5)


@pytest.mark.parametrize(("status", "page"), [(200, b"<html>log in</html>"), (202, b""), (202, b"<html>wait</html>"), (200, b"")])
def test_a_page_in_the_place_of_the_file_costs_nothing_that_was_fetched(status, page, tmp_path) -> None:
    part = tmp_path / "file.zip.part"
    part.write_bytes(CONTENT[:600_000])
    with Server(status=status, page=page) as server, pytest.raises(MissingData, match="600000 bytes are kept"):
        fetch([server.url], tmp_path / "file.zip", MD5)
    assert part.read_bytes() == CONTENT[:600_000]
    with Server() as server:
        fetch([server.url], tmp_path / "file.zip", MD5)
    assert server.asked == ["bytes=600000-"] and sorted(p.name for p in tmp_path.iterdir()) == ["file.zip", "file.zip.lock"]


def test_a_whole_answer_that_breaks_off_early_leaves_the_longer_part(tmp_path) -> None:
    part = tmp_path / "file.zip.part"
    part.write_bytes(CONTENT[:600_000])
    with Server(breaks=99, ranges=False) as server, pytest.raises(MissingData, match="600000 bytes are kept"):
        fetch([server.url], tmp_path / "file.zip", MD5)
    assert part.read_bytes() == CONTENT[:600_000] and not list(tmp_path.glob("*.again"))


@pytest.mark.parametrize(
    "error", [OSError(errno.EHOSTUNREACH, "No route to host"), ssl.SSLEOFError(8, "EOF occurred"), TimeoutError("timed out")]
)
def test_what_the_network_does_in_mid_file_is_not_the_disks_fault(error, tmp_path, monkeypatch) -> None:
    def read(answer, size):
        failing.append(size)
        raise error

    failing: list[int] = []
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    with Server(ranges=False) as server, monkeypatch.context() as patch:
        patch.setattr(http.client.HTTPResponse, "read", read)
        with pytest.raises(MissingData, match="could not be fetched.*(No route|EOF|timed out)"):
            fetch([server.url], tmp_path / "file.zip", MD5)
    assert len(failing) == download.ROUNDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.zip.lock", "file.zip.part"]
