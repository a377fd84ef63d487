"""The store of a ``file://`` URL, for the processes of one machine: it survives them."""

from asynccache.backends.file.backend import FileBackend, open_file

__all__ = ["FileBackend", "open_file"]
