"""Drafts: what is written beside its final name, and what killed processes left of it.

A draft is called `.neuroflamingo-MACHINE-PROCESS-*.tmp`. The process that writes it holds a lock on it, which the
system releases when the process ends, however it ends: so a draft without a lock is left over, also where several
containers share a name and their process numbers. Where there are no locks (some network mounts, other machines,
Windows), a draft counts as left over once nothing in it has changed for `STALE_S`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from neuroflamingo_preprocessing.errors import not_created

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

TEMPORARY_PREFIX = ".neuroflamingo-"
STALE_S = 86_400.0
"""Seconds without a change after which a draft that no lock tells of counts as left over."""
_SUFFIX, _ASIDE = ".tmp", ".old"
_AT_CWD, _EXCHANGE = -100, 2
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


@contextlib.contextmanager
def draft_file(target: str | Path) -> Iterator[Path]:
    """An empty draft beside `target`, to be written and moved; what is still there at the end is removed.

    Raises:
        OutputError: it cannot be created (exit 73).
    """
    with _draft(Path(target), folder=False) as draft:
        yield draft


@contextlib.contextmanager
def draft_folder(target: str | Path) -> Iterator[Path]:
    """An empty draft folder beside `target`, to be filled and renamed; what is still there at the end is removed.

    Raises:
        OutputError: it cannot be created (exit 73).
    """
    with _draft(Path(target), folder=True) as draft:
        yield draft


@contextlib.contextmanager
def _draft(target: Path, *, folder: bool) -> Iterator[Path]:
    try:
        draft, lock = _make(target, folder=folder)
    except OSError as error:
        raise not_created(target, error) from error
    try:
        yield draft
    finally:
        _remove(draft)
        _release(lock)


def replace_folder(draft: Path, target: Path) -> None:
    """Give a finished draft folder the name of `target`, which at every moment is that of the old one or the new one.

    The two are exchanged in one step where the system can (Linux, macOS). Elsewhere the old one is moved aside first,
    under a name by which `sweep_drafts` puts it back if the process is killed in between. The old one is removed.

    Raises:
        OSError: a rename fails; the old folder is in its place.
    """
    if not os.path.lexists(target):
        draft.rename(target)
    elif exchange(draft, target):
        shutil.rmtree(draft, ignore_errors=True)
    else:
        _replace_by_way_of(draft, target)


def _replace_by_way_of(draft: Path, target: Path) -> None:
    aside, lock = _make(target, folder=True, suffix=_ASIDE)
    try:
        target.rename(aside / target.name)
        try:
            draft.rename(target)
        except OSError:
            (aside / target.name).rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _release(lock)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system or the file system cannot."""
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return library.renamex_np(first, second, _EXCHANGE) == 0
        return library.renameat2(_AT_CWD, first, _AT_CWD, second, _EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):  # an older C library, or Windows
        return False


def sweep_drafts(folder: Path) -> int:
    """Remove what killed processes left in a folder; a folder that was moved aside for a new one is put back first.

    Returns:
        Number of drafts removed.
    """
    swept = 0
    for draft in sorted(folder.glob(f"{TEMPORARY_PREFIX}*")):
        if draft.suffix not in (_SUFFIX, _ASIDE) or draft.is_symlink():
            continue
        with _held_if_dead(draft) as dead:
            if dead:
                _remove(draft)
                swept += 1
    return swept


@lru_cache(maxsize=256)
def sweep_once(folder: Path) -> int:
    """`sweep_drafts`, once for each folder that a process writes to; a folder that cannot be listed is left alone."""
    try:
        return sweep_drafts(folder)
    except OSError:
        return 0


def _remove(draft: Path) -> None:
    if not draft.is_dir():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        return
    if draft.suffix == _ASIDE:
        for old in draft.iterdir():
            if not os.path.lexists(draft.parent / old.name):
                old.rename(draft.parent / old.name)
    shutil.rmtree(draft, ignore_errors=True)


def _make(target: Path, *, folder: bool, suffix: str = _SUFFIX) -> tuple[Path, int | None]:
    """A new draft and the handle that locks it; None where there are no locks."""
    prefix = f"{TEMPORARY_PREFIX}{_machine()}-{os.getpid()}-"
    while True:
        if folder:
            draft = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=target.parent))
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=target.parent)
            os.close(handle)
            draft = Path(name)
        try:
            lock = _lock(draft)
        except BlockingIOError:  # another process's sweep came in between, and is removing it
            continue
        except OSError:
            _remove(draft)
            raise
        if lock is None or _is_same(draft, lock):
            return draft, lock
        _release(lock)


def _lock(draft: Path) -> int | None:
    """Handle that holds the lock of a draft; None where there are no locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        return None
    handle = os.open(draft, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in _NO_LOCKS:
            return None
        raise
    return handle


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _is_same(draft: Path, lock: int) -> bool:
    """Whether the name still is that of what was locked."""
    try:
        return os.path.samestat(os.stat(draft), os.fstat(lock))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _held_if_dead(draft: Path) -> Iterator[bool]:
    """Whether no living process writes a draft; while that is acted upon, nobody else can lock it."""
    try:
        stale = time.time() - _changed(draft) > STALE_S
        own_machine = draft.name.startswith(f"{TEMPORARY_PREFIX}{_machine()}-")
        lock = _lock(draft) if stale or own_machine else None
    except OSError:  # locked, or gone, or not ours to open
        yield False
        return
    try:
        yield stale or lock is not None
    finally:
        _release(lock)


def _changed(draft: Path) -> float:
    """When anything in a draft was last changed."""
    times = [draft.stat().st_mtime]
    for folder, _, files in os.walk(draft):
        for name in files:
            with contextlib.suppress(OSError):
                times.append(os.stat(os.path.join(folder, name)).st_mtime)
    return max(times)


@lru_cache(maxsize=1)
def _machine() -> str:
    """Eight digits that are the same for all processes under one running kernel, in any container."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except (OSError, UnicodeError):
        identity = socket.gethostname()
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
