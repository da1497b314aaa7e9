"""Write docs/api.md from /openapi.json and the proto: `python -m server.docs_gen`; `--check` compares."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from server.http_api import create_app
from server.proto_gen import PROTO_DIR, PROTO_FILE, ROOT, GenerateError
from server.serve import build_service
from server.settings import Settings

OUTPUT = ROOT / "docs" / "api.md"
INTRODUCTION = """# API reference

Made by `make docs` from [/openapi.json](http://127.0.0.1:8000/openapi.json) and
[speech.proto](../proto/wavllm/v1/speech.proto), at the default limits; do not edit. How to ask:
[README](../README.md#ask) and [examples](../examples/README.md). What is refused: [limits.md](limits.md).
"""
Path_ = tuple[int, ...]
METHOD, MESSAGE, FIELD, NESTED = 2, 4, 2, 3
"""Numbers of the fields in which descriptors hold these, of which comments' paths are made."""


def generate() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *rest_lines(document()), *grpc_lines(descriptor())]) + "\n"


def document() -> dict[str, Any]:
    """What GET /openapi.json answers with the default settings; no model is loaded for it."""
    app = create_app(build_service(Settings.model_construct(**_defaults())))
    return json.loads(asyncio.run(_get(app, "/openapi.json")))  # type: ignore[no-any-return]


def _defaults() -> dict[str, Any]:
    """Every setting as shipped, whatever the environment says."""
    return {name: field.default for name, field in Settings.model_fields.items()}


async def _get(app: Any, path: str) -> bytes:
    """The body of a GET, without a server."""
    body = bytearray()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        body.extend(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": []}
    scope |= {"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}
    await app(scope, receive, send)
    return bytes(body)


def rest_lines(spec: dict[str, Any]) -> Iterator[str]:
    """The chapter on REST."""
    yield "## REST\n"
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            yield from _operation_lines(f"{method.upper()} {path}", operation)
    yield "### Schemas\n"
    for name, schema in sorted(spec["components"]["schemas"].items()):
        yield f"#### {name}\n"
        yield from _schema_lines(schema)


def _operation_lines(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {title}\n"
    yield f"{_sentence(operation.get('description', ''))}\n"
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        schema = media["schema"]
        if "$ref" in schema:
            yield f"Body, `{kind}`: {_type(schema)}.\n"
        else:
            yield f"Body, `{kind}`:\n"
            yield from _field_table(schema)
    rows = [
        (status, _reply_type(reply), reply["description"]) for status, reply in operation["responses"].items()
    ]
    yield from _table(("status", "body", "when"), rows)


def _reply_type(reply: dict[str, Any]) -> str:
    kinds = [(kind, _body_type(media["schema"])) for kind, media in reply.get("content", {}).items()]
    return "; ".join(shown if kind == "application/json" else f"`{kind}`: {shown}" for kind, shown in kinds)


def _body_type(schema: dict[str, Any]) -> str:
    """Of an event, what its data is."""
    return _type(schema.get("properties", {}).get("data", schema))


def _schema_lines(schema: dict[str, Any]) -> Iterator[str]:
    if "description" in schema:
        yield f"{_sentence(schema['description'])}\n"
    yield from _field_table(schema)


def _field_table(schema: dict[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`" + (" *" if name in required else ""),
            _type(field),
            _default(field),
            field.get("description", ""),
        )
        for name, field in schema["properties"].items()
    ]
    yield from _table(("field (* required)", "type", "default", "what"), rows)


def _default(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if field.get("default") is not None else ""


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "contentSchema" in schema:
        return _type(schema["contentSchema"])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(variant) for variant in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    if "prefixItems" in schema:
        return "[" + ", ".join(_type(item) for item in schema["prefixItems"]) + "]"
    kind = schema.get("format") or schema.get("type", "any")
    items = f" of {_type(schema['items'])}" if "items" in schema else ""
    return f"{kind}{items}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum")
    words = [f"over {above:g}"] if above is not None else []
    if low is not None and high is not None:
        words.append(f"{low} to {high}")
    elif high is not None:
        words.append(f"at most {high}")
    words += [f"at most {schema['maxLength']} characters"] if "maxLength" in schema else []
    words += [f"at most {schema['maxItems']}"] if "maxItems" in schema else []
    return f" ({', '.join(words)})" if words else ""


def descriptor() -> FileDescriptorProto:
    """The proto with its comments. Raises GenerateError."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "descriptors"
        flags = ["--include_source_info", f"--descriptor_set_out={output}", f"-I{PROTO_DIR}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", *flags, PROTO_FILE]
        if subprocess.run(command, check=False).returncode != 0:
            raise GenerateError(f"protoc could not compile {PROTO_FILE}")
        (file,) = FileDescriptorSet.FromString(output.read_bytes()).file
    return file


def grpc_lines(file: FileDescriptorProto) -> Iterator[str]:
    """The chapter on gRPC."""
    comments = {tuple(place.path): place for place in file.source_code_info.location}

    def comment(*path: int) -> str:
        place = comments.get(path)
        return _sentence(place.leading_comments) if place else ""

    (service,) = file.service
    yield f"## gRPC\n\nService `{file.package}.{service.name}`.\n"
    for detached in comments[(12,)].leading_detached_comments:
        yield "\n\n".join(_sentence(part) for part in detached.split("\n\n")) + "\n"
    rows = [
        (f"`{method.name}`", _signature(method), comment(6, 0, METHOD, index))
        for index, method in enumerate(service.method)
    ]
    yield from _table(("method", "messages", "what"), rows)
    for index, message in enumerate(file.message_type):
        yield f"### Message {message.name}\n"
        yield f"{comment(MESSAGE, index)}\n"
        yield from _message_table(
            message, [comment(MESSAGE, index, FIELD, i) for i in range(len(message.field))]
        )


def _message_table(message: DescriptorProto, comments: Sequence[str]) -> Iterator[str]:
    rows = [
        (f"`{field.name}`", str(field.number), _field_type(message, field), text)
        for field, text in zip(message.field, comments, strict=True)
    ]
    if rows:
        yield from _table(("field", "number", "type", "what"), rows)


def _signature(method: MethodDescriptorProto) -> str:
    sent = "stream of " * method.client_streaming + _message_link(method.input_type)
    return f"{sent} → {'stream of ' * method.server_streaming}{_message_link(method.output_type)}"


def _message_link(full_name: str) -> str:
    name = full_name.rpartition(".")[2]
    return f"[{name}](#message-{name.lower()})"


def _field_type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    shown = _message_link(field.type_name) if field.type_name else name
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {shown}"
    if field.proto3_optional:
        return f"optional {shown}"
    if field.HasField("oneof_index"):
        return f"{shown}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return shown


def _sentence(text: str) -> str:
    """A comment or description on one line."""
    return " ".join(text.split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    yield from (_row(row) for row in rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_sentence(cell).replace("|", "\\|") for cell in cells) + " |"


def main(argv: list[str] | None = None) -> int:
    """Write the page, or with `--check` compare it. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page differs")
    check: bool = parser.parse_args(argv).check
    page = generate()
    if not check:
        OUTPUT.write_text(page, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != page:
        sys.stderr.write("docs/api.md is not what the server and the proto say; run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
