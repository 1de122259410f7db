"""`download`: resumable download of a file over HTTP; a later call resumes the `.part` file of an earlier one."""

# Not huggingface_hub's (2.4): hf_hub_download removes its temporary file when it fails, so that a later call starts
# over, and its http_get (not public) drops the rest of a 10 MiB chunk after a cut and retries without `If-Range`.

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroflamingo_encoders.weights.cache import is_local
from neuroflamingo_preprocessing.errors import ModelError, OutputError

CHUNK = 2**20
ATTEMPTS = 5
TIMEOUT_S = 30.0
MAX_BYTES = 2**38
CUT: Any = (ConnectionError, TimeoutError, http.client.HTTPException, urllib.error.URLError)
PERMANENT = (400, 401, 403, 404, 410, 451)

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, total bytes), the latter None if the server does not state it."""


@dataclass(frozen=True)
class Remote:
    """File on a server.

    Attributes:
        url: https, or http on this machine.
        secret: headers for this host only, never sent to another one by a redirect.
        tag: ETag of the content; a part of other content is not resumed.
        size: size in bytes, if known beforehand.
    """

    url: str
    secret: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    size: int | None = None


def download(
    remote: Remote, part: Path, progress: Progress | None = None, *, trusted: bool = False, pause_s: float = 1.0
) -> int:
    """Download a remote file to `part`, resuming an earlier call.

    A part is resumed if the server still has the same content (its ETag, by `If-Range`), or if the caller checks a
    known hash afterwards (`trusted`). A cut connection is retried; the part stays for the next call.

    Args:
        remote: the file.
        part: path of the partial file.
        progress: see `Progress`.
        trusted: True if the caller checks a known hash afterwards.
        pause_s: seconds before the second retry; each further one waits as much longer.

    Returns:
        Number of bytes that an earlier call had left.

    Raises:
        ModelError: not reachable, refused, or cut too often (exit 69); longer than announced (exit 65).
        OutputError: the disk is full or cannot be written (exit 74).
    """
    _check_address(remote.url)
    kept = _usable_part(remote, part, trusted)
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            _go_on(remote, part, progress, trusted)
            return kept
        except urllib.error.HTTPError as error:
            if error.code in PERMANENT:
                raise _refused(remote, error) from error
            failure = error
        except CUT as error:
            failure = error
        except OSError as error:
            raise OutputError(
                f"writing {part.name} failed",
                seen=error.strerror or str(error),
                hint="free some space, or set NEUROFLAMINGO_HOME to another disk",
                exit_code=74,
            ) from error
        if attempt + 1 < ATTEMPTS:
            time.sleep(pause_s * attempt)
    held = part.stat().st_size if part.exists() else 0
    raise ModelError(
        f"{_shown(remote.url)} could not be downloaded",
        expected="a connection to its server",
        seen=f"{failure}; {held:,} bytes are kept",
        hint="run the same command again: it resumes where it stopped",
    ) from failure


def _check_address(url: str) -> None:
    if not (url.startswith("https://") or is_local(url)):
        raise ModelError(
            f"{_shown(url)} is not downloaded", expected="an https address", seen=url.partition(":")[0], exit_code=78
        )


def _usable_part(remote: Remote, part: Path, trusted: bool) -> int:
    """Bytes of the part that can be resumed; a part of unknown content is removed."""
    if not part.exists():
        return 0
    if not trusted and _tag_of(part) is None:
        part.unlink()
        return 0
    if remote.size is not None and part.stat().st_size > remote.size:
        part.unlink()
        return 0
    return part.stat().st_size


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _tag_of(part: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _tag_file(part).read_text(encoding="ascii").strip() or None
    return None


def remove_part(part: Path) -> None:
    """Remove an unfinished or refused download."""
    for path in (part, _tag_file(part)):
        path.unlink(missing_ok=True)


def _go_on(remote: Remote, part: Path, progress: Progress | None, trusted: bool) -> None:
    held = part.stat().st_size if part.exists() else 0
    if remote.size is not None and held == remote.size and _same_content(remote, part, trusted):
        return
    request = urllib.request.Request(remote.url, headers={"Accept-Encoding": "identity"})
    for name, value in remote.secret.items():
        request.add_unredirected_header(name, value)
    tag = _tag_of(part)
    if held:
        request.add_header("Range", f"bytes={held}-")
        if tag:
            request.add_header("If-Range", tag)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            _receive(response, part, held, progress, remote.size)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Range not satisfiable: the part is complete if it has the server's length; else start over.
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total != str(held):
            remove_part(part)
            raise ConnectionError("the file on the server has changed") from error


def _same_content(remote: Remote, part: Path, trusted: bool) -> bool:
    return trusted or (remote.tag is not None and _tag_of(part) == remote.tag)


def _receive(response: Any, part: Path, held: int, progress: Progress | None, size: int | None) -> None:
    begin, total = 0, size
    if response.status == 206:
        span, _, length = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
        begin = int(span.partition("-")[0]) if span.partition("-")[0].isdigit() else -1
        total = int(length) if length.isdigit() else size
        if begin != held:
            raise ConnectionError(f"the server sent bytes from {begin}, but {held} was asked for")
    elif response.headers.get("Content-Length", "").isdigit():
        total = int(response.headers["Content-Length"])
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):  # a weak ETag does not promise equal bytes
        _tag_file(part).write_text(tag, encoding="ascii", errors="replace")
    else:
        _tag_file(part).unlink(missing_ok=True)
    limit = min(MAX_BYTES, total if total is not None else MAX_BYTES)
    with part.open("r+b" if begin else "wb") as out:
        out.seek(begin)
        out.truncate()
        while chunk := response.read(CHUNK):
            out.write(chunk)
            if out.tell() > limit:
                raise ModelError("the server sends more than it announced", expected=f"{limit:,} bytes", exit_code=65)
            if progress:
                progress(out.tell(), total)
        here = out.tell()
    if total is not None and here < total:
        raise ConnectionError(f"the connection was cut after {here:,} of {total:,} bytes")


def _refused(remote: Remote, error: urllib.error.HTTPError) -> ModelError:
    gated = error.code in (401, 403)
    return ModelError(
        f"{_shown(remote.url)} could not be downloaded",
        expected="a file that is open to you",
        seen=f"HTTP {error.code} {error.reason}",
        hint="accept its terms and sign in first" if gated else "check the card's source, or a newer revision",
    )


def _shown(url: str) -> str:
    """Address without its query, which may hold a signature."""
    return url.partition("?")[0]
