"""Behaviour of ``tlhelpers.download``, against a server that misbehaves on purpose."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tlhelpers import download
from tlhelpers.download import fetch

BODY = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY; ``requests`` collects the Range header of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []
        self.body = BODY
        self.knows_ranges = True
        self.states_length = True
        self.cut_after: int | None = None
        self.refuse_with: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.refuse_with:
            self.send_error(self.server.refuse_with)
            return
        body, start = self.server.body, 0
        if wanted and self.server.knows_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if self.server.states_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.server.cut_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_file_arrives_whole_and_is_not_fetched_twice(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    path = tmp_path / "new" / "file.bin"
    assert fetch(server.url, path=path, size=size, sha256=SHA256) == path
    assert path.read_bytes() == BODY
    assert files(path.parent) == ["file.bin"]
    server.refuse_with = 500
    assert fetch(server.url, path=path, size=size, sha256=SHA256) == path
    assert server.requests == [None]


def test_a_file_with_an_md5_is_checked_too(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    md5 = hashlib.md5(BODY).hexdigest()
    with pytest.raises(ValueError, match=rf"md5 {md5}, expected 0{{32}}\. It was deleted"):
        fetch(server.url, path=path, md5="0" * 32)
    assert files(tmp_path) == []
    assert fetch(server.url, path=path, md5=md5).read_bytes() == BODY
    with pytest.raises(ValueError, match="its md5 is"):
        fetch(server.url, path=path, md5="0" * 32)
    for both in ({}, {"sha256": SHA256, "md5": md5}):
        with pytest.raises(ValueError, match="needs one hash"):
            fetch(server.url, path=path, **both)


@pytest.mark.parametrize(
    ("size", "states_length"), [(len(BODY), True), (len(BODY), False), (None, True)]
)
def test_a_broken_connection_leaves_a_part_that_the_next_call_continues(
    server: Server, tmp_path: Path, size: int | None, states_length: bool
) -> None:
    path = tmp_path / "file.bin"
    server.cut_after, server.states_length = 100_000, states_length
    with pytest.raises(ConnectionError, match=r"broke off after 0\.1 MB.*call again"):
        fetch(server.url, path=path, size=size, sha256=SHA256)
    assert files(tmp_path) == ["file.bin.part"]
    kept = (tmp_path / "file.bin.part").read_bytes()
    assert kept == BODY[: len(kept)]
    assert 100_000 - download.CHUNK < len(kept) <= 100_000
    server.cut_after = None
    fetch(server.url, path=path, size=size, sha256=SHA256)
    assert server.requests == [None, f"bytes={len(kept)}-"]
    assert path.read_bytes() == BODY
    assert files(tmp_path) == ["file.bin"]


def test_a_cut_download_of_unknown_length_is_found_by_its_hash(
    server: Server, tmp_path: Path
) -> None:
    server.cut_after, server.states_length = 100_000, False
    with pytest.raises(ValueError, match="not the expected file: 100,000 bytes"):
        fetch(server.url, path=tmp_path / "file.bin", sha256=SHA256)
    assert files(tmp_path) == []


def test_a_server_without_ranges_sends_everything_anew(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    path = fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert path.read_bytes() == BODY
    assert server.requests == ["bytes=1000-"]


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_whole_part_needs_no_second_download(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY)
    path = fetch(server.url, path=tmp_path / "file.bin", size=size, sha256=SHA256)
    assert path.read_bytes() == BODY
    # Without a size only the server can tell (status 416) that there is no more.
    assert server.requests == ([] if size else ["bytes=300000-"])


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_part_that_is_too_long_is_started_over(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY + b"more")
    path = fetch(server.url, path=tmp_path / "file.bin", size=size, sha256=SHA256)
    assert path.read_bytes() == BODY
    assert server.requests == ([None] if size else ["bytes=300004-", None])


def test_a_wrong_checksum_names_both_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    found = hashlib.sha256(server.body).hexdigest()
    with pytest.raises(ValueError, match=rf"sha256 {found}, expected {SHA256}.*deleted"):
        fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert files(tmp_path) == []


def test_a_body_that_is_too_long_is_not_followed_to_its_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK", 1000)
    server.body = BODY * 2
    with pytest.raises(ValueError, match="301,000 bytes for 300,000"):
        fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert files(tmp_path) == []


def test_a_part_of_another_file_is_found_by_the_hash(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="not the expected file"):
        fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert files(tmp_path) == []
    assert fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256).is_file()


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_names_status_address_and_another_way(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.refuse_with = status
    message = rf"answered {status} .*{server.url}.*fetch file\.bin in another way.*TLHELPERS_DATA"
    with pytest.raises(ConnectionError, match=message):
        fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert files(tmp_path) == []


def test_a_refusal_keeps_what_an_earlier_call_fetched(server: Server, tmp_path: Path) -> None:
    server.refuse_with = 403
    (tmp_path / "file.bin.part").write_bytes(BODY[:1000])
    with pytest.raises(ConnectionError, match="answered 403"):
        fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[:1000]


def test_a_server_that_is_not_there(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(ConnectionError, match=r"cannot be reached.*another way"):
        fetch(url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert files(tmp_path) == []


def test_another_file_at_the_place_is_left_alone(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"not the expected file.*Move it away"):
        fetch(server.url, path=path, size=len(BODY), sha256=SHA256)
    assert path.read_bytes() == b"mine"
    assert server.requests == []


def test_too_little_space_is_said_beforehand(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200_000))
    with pytest.raises(OSError, match=r"needs 0\.3 MB .* only 0\.2 MB are free") as caught:
        fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert caught.value.errno == errno.ENOSPC
    assert server.requests == []
    assert files(tmp_path) == []
    # What an earlier call fetched counts: 0.1 MB are missing now.
    (tmp_path / "file.bin.part").write_bytes(BODY[:200_000])
    fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are a POSIX matter")
def test_a_disk_that_fills_up_half_way_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """A child process may write 100,000 bytes to a file; the kernel refuses the rest."""
    script = f"""
        import resource, signal
        from tlhelpers.download import fetch
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        fetch({server.url!r}, path={str(tmp_path / "file.bin")!r}, sha256={SHA256!r})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "the disk took 0.1 MB of file.bin" in last, done.stderr
    assert "they were deleted. Free some space" in last
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_two_processes_do_not_write_to_one_part(server: Server, tmp_path: Path) -> None:
    import fcntl

    part = tmp_path / "file.bin.part"
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is downloading"):
            fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
        assert part.exists()
    fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)


def test_an_interrupt_keeps_the_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting:
        """A progress bar during whose second update somebody presses Ctrl-C."""

        def __init__(self, **_: object) -> None:
            self.updates = 0

        def __enter__(self) -> Interrupting:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, _: int) -> None:
            self.updates += 1
            if self.updates == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(download, "CHUNK", 1000)
    monkeypatch.setattr(download.runtime, "progress", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, path=tmp_path / "file.bin", size=len(BODY), sha256=SHA256)
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[:2000]
    assert files(tmp_path) == ["file.bin.part"]
