"""Messages as frames of bytes: what the engine's pipe carries, at its blocking end and at the event loop's.

A frame is the length of the pickled message (8 bytes, big-endian) and the message. Both ends are this
project, one started by the other, so pickle is safe here; nothing else can reach the pipe.
"""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

LENGTH = struct.Struct("!Q")

Sent = TypeVar("Sent")
Received = TypeVar("Received")


def frame(message: object) -> tuple[bytes, bytes]:
    """The frame of a message, in two pieces, so that nobody need copy a clip to join them."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)), data


class FrameReader:
    """Fed with bytes as they come, it gives the messages that are whole."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take the next bytes; yields every message that ends in them."""
        self._data += data
        while len(self._data) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                return
            with memoryview(self._data) as view:
                message = pickle.loads(view[LENGTH.size : end])
            del self._data[:end]
            yield message


class Channel(Generic[Sent, Received]):
    """The blocking end of the pipe. Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: Sent) -> None:
        """Write one message; blocks while the pipe is full. Raises OSError if the peer is gone."""
        data = b"".join(frame(message))
        with self._sending:
            self._connection.sendall(data)

    def receive(self) -> Received:
        """The next message; waits for it. Raises EOFError or OSError if the peer is gone."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        message: Received = pickle.loads(self._read(length))
        return message

    def close(self) -> None:
        """Close this end. Not while another thread sends or receives."""
        self._connection.close()

    def _read(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        rest = memoryview(data)
        while rest:
            num_read = self._connection.recv_into(rest)
            if not num_read:
                raise EOFError("the peer closed the pipe")
            rest = rest[num_read:]
        return data
