"""multipart/form-data as it arrives: kept in memory, bounded, never written to disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.message import Message

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from server.errors import InvalidAudio, InvalidRequest, PayloadTooLarge

MAX_PARTS = 64
MAX_NAME_CHARS = 64
MAX_HEADERS = 6
MAX_HEADER_BYTES = 1024
"""Of a part. A header may go on over many short lines, and the parser joins them anew for each of them."""
MAX_BOUNDARY_CHARS = 70
"""As RFC 2046 (5.1.1) bounds it."""
MAX_PREAMBLE_BYTES = 1024
"""Before the first boundary, where no client writes anything and a search for it is at its slowest."""
FILE_FIELD = "file"
"""The one name that files have on every route."""
CHARSETS = {
    **dict.fromkeys(("", "utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("iso-8859-1", "latin1", "latin-1"), "latin-1"),
}
"""Of text: what it says it is written in, and how it is read."""
HAS_FILENAME = re.compile(r";\s*filename\*?\s*=", re.IGNORECASE)
"""Whatever its value: some clients leave out the quotes, older ones write it as RFC 5987 has it."""
PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")


@dataclass(slots=True)
class _Part:
    name: str
    is_file: bool
    charset: str
    data: bytearray = field(default_factory=bytearray)


class FormReader:
    """Fed with chunks of a body, it gives the fields and files of a form.

    content_type: the request's header, with the boundary. max_file_bytes, max_field_bytes: bounds of one
    part. Raises InvalidRequest (param: the field), InvalidAudio for a file that is none, and PayloadTooLarge.
    """

    def __init__(self, content_type: str, *, max_file_bytes: int, max_field_bytes: int) -> None:
        self.fields: list[tuple[str, str]] = []
        self.files: list[tuple[str, bytes]] = []
        self._max_file_bytes = max_file_bytes
        self._max_field_bytes = max_field_bytes
        self._part: _Part | None = None
        self._num_preamble_bytes = 0
        self._parser = PushMultipartParser(
            _boundary_of(content_type),
            max_header_size=MAX_HEADER_BYTES,
            max_header_count=MAX_HEADERS,
            header_charset="latin-1",  # which any bytes are: file names come in every code page
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if not chunk:
            return
        try:
            for event in self._parser.parse(chunk):
                self._take(event)
        except MultipartError as error:
            raise InvalidRequest("The multipart body is malformed.") from error
        if self._part is None and not self.fields and not self.files:
            self._num_preamble_bytes += len(chunk)
            if self._num_preamble_bytes > MAX_PREAMBLE_BYTES:
                raise InvalidRequest("The multipart body does not begin with its boundary.")

    def close(self) -> None:
        """The body has ended. Raises InvalidRequest if the form had not."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise InvalidRequest("The multipart body ends before its last boundary.") from error

    def _take(self, event: MultipartSegment | bytes | None) -> None:
        """A part's head, a piece of its data, or its end."""
        if isinstance(event, MultipartSegment):
            if len(self.fields) + len(self.files) >= MAX_PARTS:
                raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
            self._part = _begin(event)
        elif self._part is not None and event is not None:
            self._add(self._part, event)
        elif self._part is not None:
            self._end(self._part)
            self._part = None

    def _add(self, part: _Part, data: bytes) -> None:
        limit = self._max_file_bytes if part.is_file else self._max_field_bytes
        if len(part.data) + len(data) > limit:
            raise _too_large(part, limit)
        part.data += data

    def _end(self, part: _Part) -> None:
        if part.is_file:
            self.files.append((part.name, bytes(part.data)))
        else:
            self.fields.append((part.name, _decode(part)))


def _boundary_of(content_type: str) -> bytes:
    """Raises InvalidRequest if there is none, or one that is too long."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = str(header.get_param("boundary", ""))
    if not boundary:
        raise InvalidRequest("The Content-Type multipart/form-data has no boundary.")
    if len(boundary) > MAX_BOUNDARY_CHARS:
        raise InvalidRequest(f"The multipart boundary is longer than {MAX_BOUNDARY_CHARS} characters.")
    return boundary.encode("latin-1", "replace")


def _begin(head: MultipartSegment) -> _Part:
    name = (head.name or "").encode("latin-1").decode("utf-8", "replace")
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise InvalidRequest("A form part has no name, or one that is too long.")
    is_file = HAS_FILENAME.search(head["Content-Disposition"]) is not None
    if name == FILE_FIELD and not is_file:
        raise InvalidAudio(f"{name} must be sent as a file, with a filename (curl: -F {name}=@clip.wav).")
    if head.header("Content-Transfer-Encoding", "").strip().lower() not in PLAIN_ENCODINGS:
        raise InvalidRequest(f"{name}: no Content-Transfer-Encoding is taken.", param=name)
    charset = (head.charset or "").lower()
    if not is_file and charset not in CHARSETS:
        raise InvalidRequest(f"{name}: its charset must be UTF-8 or ISO-8859-1.", param=name)
    return _Part(name, is_file, CHARSETS.get(charset, ""))


def _decode(part: _Part) -> str:
    try:
        return part.data.decode(part.charset)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{part.name} is not valid {part.charset.upper()}.", param=part.name) from error


def _too_large(part: _Part, limit: int) -> PayloadTooLarge | InvalidRequest:
    if part.is_file:
        return PayloadTooLarge(f"The audio is larger than {limit} bytes.", param="audio")
    return InvalidRequest(f"{part.name} is too long.", param=part.name)
