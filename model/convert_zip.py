"""Where the uncompressed entries of a zip lie, so that they can be read in part."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Collection
from typing import BinaryIO

from model.safetensors_files import CheckpointError

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, then the lengths of the name and of the extra field of an entry's own header."""
SIGNATURE = b"PK\x03\x04"
ENCRYPTED = 1


class StoredZip:
    """The directory of a zip whose entries are stored as they are. The caller owns `file`.

    Raises CheckpointError for what is no zip, a cut one, or one with two entries of one name.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._entries = _directory(file)

    @property
    def names(self) -> Collection[str]:
        """The entries' full names."""
        return self._entries.keys()

    def size(self, name: str) -> int:
        """Bytes of entry `name`."""
        return self._entries[name].file_size

    def start(self, name: str) -> int:
        """Where the bytes of entry `name` begin in the file; all of them are inside of it.

        Raises CheckpointError if the entry is compressed, encrypted or not where the directory says.
        """
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"entry {name} is compressed, which torch.save never does")
        if entry.flag_bits & ENCRYPTED:
            raise CheckpointError(f"entry {name} is encrypted")
        start = entry.header_offset + self._header_bytes(entry)
        if start + entry.file_size > self._size:
            raise CheckpointError(f"entry {name} reaches past the end of the file")
        return start

    def read(self, name: str, max_bytes: int) -> bytes:
        """All bytes of entry `name`; its checksum is not compared, as torch can be told to leave it out.

        Raises CheckpointError if there are more than `max_bytes`.
        """
        if self.size(name) > max_bytes:
            raise CheckpointError(f"entry {name} has {self.size(name)} bytes, more than {max_bytes}")
        self._file.seek(self.start(name))
        return self._file.read(self.size(name))

    def _header_bytes(self, entry: zipfile.ZipInfo) -> int:
        # the directory is bytes of the file too, and may give an offset that no file has
        is_inside = 0 <= entry.header_offset < self._size
        self._file.seek(entry.header_offset if is_inside else self._size)
        header = self._file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or not header.startswith(SIGNATURE):
            raise CheckpointError(f"entry {entry.filename} is not where the zip's directory says")
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        return LOCAL_HEADER.size + int(name_length) + int(extra_length)


def _directory(file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, OSError) as e:
        raise CheckpointError(
            f"not a whole zip file ({e}); files from before torch 1.6 must be saved again with torch.save"
        ) from e
    names = {entry.filename: entry for entry in entries}
    if len(names) != len(entries):
        raise CheckpointError("two entries of the zip have the same name")
    return names
