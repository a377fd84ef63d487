"""The directory of a file store: who may use it, and what becomes of a database that is damaged.

::

    entries-1.sqlite3           the database, its name ending in the version of its tables
    entries-1.sqlite3-wal       what was written since the last checkpoint, and its index (-shm)
    boot                        the machine's start, under which it was written
    lock                        held while the above are made or set aside
    *.damaged-…                 databases that could not be read, for looking

Everything is made for its owner alone, whatever the umask. Nothing is reached through a symbolic link: a directory that
others can write to is refused, and so nobody can plant one.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

try:
    import fcntl
except ImportError:  # not a POSIX system: processes that start at the same moment are on their own
    fcntl = None  # type: ignore[assignment]

__all__ = ["Identity", "Place"]

Identity = tuple[int, int]
"""What tells a file from another that takes its name: device and inode."""

_DATABASE: Final = "entries-1.sqlite3"
_BESIDE: Final = ("-wal", "-shm")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_DAMAGED: Final = 3
_LOCK_TRIES: Final = 200
_LOCK_PAUSE: Final = 0.01


@final
class Place:
    """A directory and the database in it.

    Args:
        path: The directory; made when it is missing.
        forgetful: Whether a database of before the machine's last start is thrown away.
    """

    def __init__(self, path: Path, *, forgetful: bool) -> None:
        self.path = path
        self.database = path / _DATABASE
        self._forgetful = forgetful

    @contextmanager
    def prepared(self) -> Iterator[Identity]:
        """The database, made if it is missing, while no other thread or process makes one or sets one aside.

        Raises:
            OSError: The directory or a file in it cannot be made, is a symbolic link, or belongs to somebody else.
        """
        self._make_directory()
        with self._locked():
            for name in (_DATABASE, *(_DATABASE + end for end in _BESIDE), "boot"):
                _refuse_link(self.path / name)
            if self._forgetful:
                self._forget_before_boot()
            if not self.database.exists():
                _make(self.database, b"")
            yield self.identity()

    def identity(self) -> Identity:
        """Which file is the database now.

        Raises:
            OSError: There is none.
        """
        found = os.lstat(self.database)
        return found.st_dev, found.st_ino

    def set_aside(self, damaged: Identity) -> bool:
        """Rename a damaged database, for looking; whether it was still there, and not replaced by another process."""
        with self._locked():
            try:
                if self.identity() != damaged:
                    return False
            except FileNotFoundError:
                return False
            mark = f".damaged-{os.urandom(4).hex()}"
            wal, shm = (self.database.with_name(_DATABASE + end) for end in _BESIDE)
            os.rename(self.database, self.database.with_name(_DATABASE + mark))
            if wal.exists():
                os.rename(wal, wal.with_name(wal.name + mark))
            shm.unlink(missing_ok=True)
            self._drop_oldest()
        return True

    def written(self) -> int:
        """Bytes in the write-ahead log."""
        try:
            return os.lstat(f"{self.database}-wal").st_size
        except OSError:
            return 0

    def _make_directory(self) -> None:
        try:
            os.makedirs(self.path.parent, mode=0o700, exist_ok=True)
            os.mkdir(self.path, 0o700)
            os.chmod(self.path, 0o700)  # what the umask took away
        except FileExistsError:
            pass
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "no directory (a symbolic link is not followed)", str(self.path))
        if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
            raise PermissionError(errno.EACCES, "it belongs to another user, or others may write to it", str(self.path))

    def _forget_before_boot(self) -> None:
        """Without waiting for the disk at each write, what a power loss leaves may be older than what was deleted."""
        try:
            boot = _BOOT.read_bytes().strip()
        except OSError:
            return  # this system does not say
        mark = self.path / "boot"
        if mark.exists() and mark.read_bytes() == boot:
            return
        for end in ("", *_BESIDE):
            self.database.with_name(_DATABASE + end).unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
        _make(mark, boot)

    def _drop_oldest(self) -> None:
        damaged = sorted(self.path.glob(f"{_DATABASE}.damaged-*"), key=lambda path: os.lstat(path).st_mtime)
        for path in damaged[:-_MOST_DAMAGED]:
            path.unlink(missing_ok=True)
            path.with_name(path.name.replace(_DATABASE, _DATABASE + "-wal")).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held by one of all processes; by none for ever, because it goes with its holder."""
        path = self.path / "lock"
        _refuse_link(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            for _ in range(_LOCK_TRIES):
                try:
                    if fcntl is not None:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(_LOCK_PAUSE)
            else:
                raise TimeoutError(errno.ETIMEDOUT, "held by another process", str(path))
            yield
        finally:
            os.close(descriptor)


def _make(path: Path, content: bytes) -> None:
    """Make a file for its owner alone, which must not be there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # what the umask took away
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _refuse_link(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise PermissionError(errno.EACCES, "a link, or no file at all, is not followed", str(path))
