"""multipart/form-data as it arrives: kept in memory, bounded, strict, never written to disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import InvalidAudio, InvalidRequest, PayloadTooLarge

MAX_PARTS = 64
MAX_NAME_CHARS = 64
FILE_FIELD = "file"
"""The one name that files have on every route."""
PART_HEADERS = (b"content-disposition", b"content-type", b"content-transfer-encoding")
CHARSETS = {
    **dict.fromkeys((b"", b"utf-8", b"utf8", b"us-ascii", b"ascii"), "utf-8"),
    **dict.fromkeys((b"iso-8859-1", b"latin1", b"latin-1"), "latin-1"),
}
"""Of text: what it says it is written in, and how it is read."""
PLAIN_ENCODINGS = (b"", b"7bit", b"8bit", b"binary")


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
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._part: _Part | None = None
        self._is_complete = False
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        self._delimiter = b"\r\n--" + boundary
        self._num_delimiters = 0
        self._parser = self._make_parser(boundary)

    def _make_parser(self, boundary: bytes) -> MultipartParser:
        if not boundary:
            raise InvalidRequest("The Content-Type multipart/form-data has no boundary.")
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end,
                    "on_end": self._complete,
                },
            )
        except FormParserError as error:
            raise InvalidRequest("The multipart boundary is not valid.") from error

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        # What begins like a boundary and is none costs the parser 300 times as much as other data.
        self._num_delimiters += chunk.count(self._delimiter)
        if self._num_delimiters > MAX_PARTS + 1:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest("The multipart body is malformed.") from error

    def close(self) -> None:
        """The body has ended. Raises InvalidRequest if the form had not."""
        if not self._is_complete:
            raise InvalidRequest("The multipart body ends before its last boundary.")

    def _begin(self) -> None:
        if len(self.fields) + len(self.files) >= MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        self._headers.clear()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        name = bytes(self._header_name.lower())
        if name in PART_HEADERS:
            self._headers[name] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        disposition, kind, encoding = (self._headers.get(name, b"") for name in PART_HEADERS)
        options = parse_options_header(disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise InvalidRequest("A form part has no name, or one that is too long.")
        is_file = b"filename" in options
        if name == FILE_FIELD and not is_file:
            raise InvalidAudio(f"{name} must be sent as a file, with a filename (curl: -F {name}=@clip.wav).")
        if encoding.strip().lower() not in PLAIN_ENCODINGS:
            raise InvalidRequest(f"{name}: no Content-Transfer-Encoding is taken.", param=name)
        charset = parse_options_header(kind)[1].get(b"charset", b"").lower()
        if not is_file and charset not in CHARSETS:
            raise InvalidRequest(f"{name}: its charset must be UTF-8 or ISO-8859-1.", param=name)
        self._part = _Part(name, is_file, CHARSETS.get(charset, ""))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current()
        limit = self._max_file_bytes if part.is_file else self._max_field_bytes
        if len(part.data) + end - start > limit:
            raise _too_large(part, limit)
        part.data += memoryview(data)[start:end]

    def _end(self) -> None:
        part = self._current()
        if part.is_file:
            self.files.append((part.name, bytes(part.data)))
        else:
            self.fields.append((part.name, _decode(part)))
        self._part = None

    def _complete(self) -> None:
        self._is_complete = True

    def _current(self) -> _Part:
        if self._part is None:
            raise InvalidRequest("The multipart body is malformed.")
        return self._part


def _decode(part: _Part) -> str:
    try:
        return part.data.decode(part.charset)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{part.name} is not valid {part.charset.upper()}.", param=part.name) from error


def _too_large(part: _Part, limit: int) -> PayloadTooLarge | InvalidRequest:
    if part.is_file:
        return PayloadTooLarge(f"The audio is larger than {limit} bytes.", param="audio")
    return InvalidRequest(f"{part.name} is too long.", param=part.name)
