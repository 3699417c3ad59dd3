"""Download one file: resumed where it stopped, checked against its hash, never left half done."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pooch
import requests

from tlhelpers import runtime

CHUNK = 2**16  # bytes written at a time, and the most that a broken connection loses
TIMEOUT = (10, 60)  # seconds to connect, and between two chunks


def fetch(
    url: str,
    *,
    path: Path | str,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
) -> Path:
    """Download ``url`` to ``path``; return at once if the right file is there already.

    The bytes go to ``<path>.part``, which is renamed when its hash is right: there is never
    more than one copy, and never a half file at ``path``. After an interruption the ``.part``
    stays, and the next call asks the server for the rest of it (an HTTP range request; a server
    that knows none sends the file anew).

    Args:
        url: an http or https address.
        path: where the file shall be; its folder is made.
        size: length in bytes where it is known; free space is then checked beforehand.
        sha256: the expected hash, 64 hexadecimal digits.
        md5: the expected hash, 32 hexadecimal digits, where a publisher states no other. It tells
            a damaged file; against one that was forged on purpose it is no protection.

    Returns:
        ``path``.

    Raises:
        ValueError: if the hash is wrong (the download is then deleted), another file lies at
            ``path`` (which stays), or not exactly one hash is given.
        ConnectionError: if the server refuses, cannot be reached, or the connection breaks off.
        OSError: if the disk is full, or another process is downloading the same file.

    Example:
        >>> import hashlib
        >>> import tempfile
        >>> from pathlib import Path
        >>> import tlhelpers as tl
        >>> url, sha256 = "https://example.org/breeds.txt", hashlib.sha256(b"pug").hexdigest()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "breeds.txt")
        ...     size = path.write_bytes(b"pug")
        ...     print(tl.download.fetch(url, path=path, sha256=sha256).name)  # there already
        breeds.txt
    """
    path, expected = Path(path), _expected(sha256, md5)
    if path.exists():
        return _keep(path, expected)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _exclusive(part) as file:
        if size is not None and _length(file) > size:
            file.truncate(0)
        if size is None or _length(file) < size:
            _require_space(part, _length(file), size)
            _download(url, file, part, size)
        found = _length(file)
    if size is not None and found < size:
        raise ConnectionError(_broken_off(url, part, found, size))
    _require_hash(url, part, found, size, expected)
    os.replace(part, path)
    return path


Hash = tuple[str, str]  # the algorithm's name, and hexadecimal digits


def _expected(sha256: str | None, md5: str | None) -> Hash:
    given = [(name, value) for name, value in (("sha256", sha256), ("md5", md5)) if value]
    if len(given) != 1:
        raise ValueError(f"a download needs one hash, sha256 or md5; found {len(given)}.")
    return given[0]


def _keep(path: Path, expected: Hash) -> Path:
    """The file that is there already, if it is the right one."""
    kind, digits = expected
    if (found := pooch.file_hash(str(path), alg=kind)) != digits:
        raise ValueError(
            f"{path} is there, but it is not the expected file: its {kind} is {found}, expected "
            f"{digits}. Move it away, then call again."
        )
    return path


@contextlib.contextmanager
def _exclusive(part: Path) -> Iterator[BinaryIO]:
    """Open the partial file for one process at a time; an empty one does not stay.

    Two that append to one file would spoil it; and one that still writes while the other
    renames would spoil the file that was just checked.
    """
    with part.open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been renamed between our opening and our lock.
            ours = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
        except BlockingIOError:
            ours = False
        except ImportError:  # Windows, where nobody can rename a file that we hold open
            ours = True
        if not ours:
            raise BlockingIOError(
                f"another process is downloading {part.name} to the same folder. Wait until it "
                f"is done, then call again."
            )
        try:
            yield file
        finally:
            with contextlib.suppress(OSError, ValueError):  # closed already, or the disk is full
                if _length(file) == 0:
                    part.unlink()


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _require_space(part: Path, have: int, size: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if size is not None and free < size - have:
        raise OSError(
            errno.ENOSPC,
            f"the download needs {_megabytes(size - have)} in {part.parent}, but only "
            f"{_megabytes(free)} are free. {_make_room()}",
        )


def _download(url: str, file: BinaryIO, part: Path, size: int | None) -> None:
    """Append to ``file`` what is missing, or everything if the server sends everything."""
    have = _length(file)
    # Identity: a body that was compressed on the way could not be resumed by byte positions.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416 and have:  # the server has nothing beyond what we have
                if size is None and _stated_length(response) == have:
                    return
                file.truncate(0)
                return _download(url, file, part, size)
            if response.status_code not in (200, 206):
                raise ConnectionError(
                    f"the server answered {response.status_code} ({response.reason}) for {url}. "
                    f"Try again later, or {_another_way(part)}"
                )
            if not _continues(response, have):
                file.truncate(0)
            _write(response, file, part, size)
    except requests.RequestException as error:
        if (found := _length(file)) > 0:
            raise ConnectionError(_broken_off(url, part, found, size)) from error
        raise ConnectionError(
            f"{url} cannot be reached, or sent nothing ({type(error).__name__}). Check the "
            f"connection and call again, or {_another_way(part)}"
        ) from error


def _stated_length(response: requests.Response) -> int | None:
    """The whole length that a 416 answer states: ``Content-Range: bytes */1234``."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _continues(response: requests.Response, have: int) -> bool:
    stated = response.headers.get("Content-Range", "")
    return response.status_code == 206 and stated.startswith(f"bytes {have}-")


def _write(response: requests.Response, file: BinaryIO, part: Path, size: int | None) -> None:
    have = _length(file)
    if size is None and (rest := response.headers.get("Content-Length", "")).isdigit():
        size = have + int(rest)
    bar: Any = runtime.progress(
        total=size, initial=have, desc=_name(part), unit="B", unit_scale=True
    )
    with bar:
        for chunk in response.iter_content(CHUNK):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                if error.errno in runtime.NO_SPACE:
                    raise _disk_is_full(error, file, part) from error
                raise
            bar.update(len(chunk))
            if size is not None and file.tell() > size:
                return  # more than there should be: the hash will tell


def _disk_is_full(error: OSError, file: BinaryIO, part: Path) -> OSError:
    """A sentence for a disk that takes no more; what it took is given back."""
    written = part.stat().st_size
    with contextlib.suppress(OSError):  # closing tries to write the rest once more
        file.close()
    part.unlink()
    return OSError(
        error.errno,
        f"the disk took {_megabytes(written)} of {_name(part)} in {part.parent} and no more "
        f"({os.strerror(error.errno or 0)}); they were deleted. {_make_room()}",
    )


def _require_hash(url: str, part: Path, found: int, size: int | None, expected: Hash) -> None:
    kind, digits = expected
    digest = pooch.file_hash(str(part), alg=kind)
    if digest != digits:
        part.unlink()
        length = f"{found:,} bytes" if size is None else f"{found:,} bytes for {size:,}"
        raise ValueError(
            f"what {url} sent is not the expected file: {length}, {kind} {digest}, expected "
            f"{digits}. It was deleted. Call again for a fresh download; if that changes nothing, "
            f"the file on the server has changed: {_another_way(part)}"
        )


def _broken_off(url: str, part: Path, found: int, size: int | None) -> str:
    whole = "" if size is None else f" of {_megabytes(size)}"
    return (
        f"the connection to {url} broke off after {_megabytes(found)}{whole}. They are kept in "
        f"{part.name}: call again to fetch the rest, or {_another_way(part)}"
    )


def _another_way(part: Path) -> str:
    return (
        f"fetch {_name(part)} in another way (a browser, a colleague, a mirror) and pass its "
        f"place as path=, or put it into the folder that {runtime.DATA_VARIABLE} names."
    )


def _make_room() -> str:
    return f"Free some space, or let {runtime.CACHE_VARIABLE} name a folder on a larger disk."


def _name(part: Path) -> str:
    return part.name.removesuffix(".part")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
