"""What /openapi.json says of bodies beyond their models: bounds, nulls, and what a form makes of a field.

The models stay loose where `validation` gives the better error; the document says all that is checked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from server.openai_schemas import CHAT_IGNORED, CHAT_NEUTRAL, Neutral
from server.settings import Settings
from server.validation import MAX_STOP_STRINGS, MAX_TEMPERATURE, MAX_TOP_K

Schema = dict[str, Any]

REF_TEMPLATE = "#/components/schemas/{model}"
IGNORED = "Taken and ignored."
CLIP = {"type": "string", "format": "binary", "description": "The clip; its bytes decide the format."}
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")


def form_schema(
    model: type[BaseModel], neutral: Neutral | None = None, ignored: Iterable[str] = ()
) -> Schema:
    """A form of these fields and a file, with the fields that are taken at some values alone, or ignored."""
    form = model.model_json_schema(ref_template=REF_TEMPLATE)
    form.pop("$defs", None)
    is_openai = neutral is not None
    properties = {name: _in_form(schema, is_openai) for name, schema in form["properties"].items()}
    if "stop" in properties:
        properties |= _stop_fields()
        form["not"] = {"required": ["stop", "stop[]"]}
    for name, values in (neutral or {}).items():
        properties |= _neutral_field(name, values)
    properties |= {name: {"type": "string", "description": IGNORED} for name in sorted(ignored)}
    form["properties"] = properties | {"file": CLIP}
    form["required"] = [*form.get("required", ()), "file"]
    return form


def complete_bodies(document: Schema, settings: Settings) -> None:
    """Add the bounds of this server to every body of the document, and the rest of OpenAI's chat."""
    schemas = document["components"]["schemas"]
    _complete_chat(schemas["ChatCompletionBody"]["properties"])
    schemas["ChatCompletionBody"]["not"] = {"required": list(LIMIT_NAMES)}
    schemas |= _messages(schemas)
    for part, name in (("AudioData", "data"), ("InputAudio", "data")):
        schemas[part]["properties"][name] |= {"format": "byte", "contentEncoding": "base64"}
    bounds = _bounds(settings)
    for schema in (*schemas.values(), *_inline_bodies(document)):
        for name, field in schema.get("properties", {}).items():
            if name in bounds:
                _for_each_type(field, bounds[name])
    _for_each_type(schemas["TextPart"]["properties"]["text"], bounds["prompt"])
    _for_each_type(schemas["UserMessage"]["properties"]["content"], bounds["prompt"])
    _for_each_type(schemas["SystemMessage"]["properties"]["content"], bounds["system"])


def _inline_bodies(document: Schema) -> Iterable[Schema]:
    """The schemas of bodies that stand in their routes: the forms."""
    for path in document["paths"].values():
        for operation in path.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                yield media["schema"]


def _bounds(settings: Settings) -> dict[str, Mapping[str, Schema]]:
    """By field name and JSON type: what `validation` checks."""
    text = {"string": {"maxLength": settings.max_prompt_chars}}
    limit = {"integer": {"minimum": 1, "maximum": settings.max_new_tokens}}
    stop = {"minLength": 1, "maxLength": settings.max_prompt_chars}
    stops = {"maxItems": MAX_STOP_STRINGS, "items": {"type": "string", **stop}}
    return {
        "prompt": text,
        "system": text,
        **dict.fromkeys(LIMIT_NAMES, limit),
        "temperature": {"number": {"minimum": 0, "maximum": MAX_TEMPERATURE}},
        "top_p": {"number": {"exclusiveMinimum": 0, "maximum": 1}},
        "top_k": {"integer": {"minimum": 0, "maximum": MAX_TOP_K}},
        "seed": {"integer": {"minimum": -(2**63), "maximum": 2**63 - 1}},
        "timeout_s": {"number": {"exclusiveMinimum": 0}},
        "stop": {"string": stop, "array": stops},
        "stop[]": {"array": stops},
    }


def _for_each_type(schema: Schema, bounds: Mapping[str, Schema]) -> None:
    """Add the bounds of its type to a schema, or to each of those that it may be."""
    for variant in schema.get("anyOf", [schema]):
        variant |= bounds.get(variant.get("type", ""), {})


def _in_form(schema: Schema, is_openai: bool) -> Schema:
    """A form's text knows no null, but `null` stands for it where a number or the like is meant."""
    is_text = schema.get("type") == "string" or {"type": "string"} in schema.get("anyOf", ())
    if is_text:
        return _without_null(schema)
    return _or_null(schema) if is_openai and not _takes_null(schema) else schema


def _takes_null(schema: Schema) -> bool:
    return {"type": "null"} in schema.get("anyOf", ())


def _without_null(schema: Schema) -> Schema:
    variants = [variant for variant in schema.get("anyOf", ()) if variant.get("type") != "null"]
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    if schema.get("default") is not None:
        rest["default"] = schema["default"]
    return rest | (variants[0] if variants else {})


def _stop_fields() -> Schema:
    one = "A text that ends the answer, or a JSON list of up to four."
    several = "Up to four texts that end the answer, each in a part of its own."
    return {
        "stop": {"type": "string", "description": one},
        "stop[]": {"type": "array", "description": several},
    }


def _neutral_field(name: str, values: tuple[Any, ...]) -> Schema:
    """A form's field that is taken at these values alone; nothing if it must be left out."""
    texts = [value for value in values if isinstance(value, str)]
    lists = [value for value in values if isinstance(value, list)]
    fields: Schema = {name: {"enum": texts}} if texts else {}
    if lists:
        items = {"enum": lists[0]}
        fields[f"{name}[]"] = {"type": "array", "items": items, "minItems": 1, "maxItems": 1}
    return fields


def _complete_chat(properties: Schema) -> None:
    """Null is as good as left out there; some fields are taken at some values alone, some are ignored."""
    question, system = _reference("UserMessage"), _reference("SystemMessage")
    alone = {"type": "array", "items": question, "minItems": 1, "maxItems": 1}
    both = {"type": "array", "prefixItems": [system, question], "minItems": 2, "maxItems": 2}
    description = properties["messages"]["description"]
    properties["messages"] = {"anyOf": [alone, both], "description": description}
    for name, schema in properties.items():
        if name != "messages" and not _takes_null(schema):
            properties[name] = _or_null(schema)
    for name, values in CHAT_NEUTRAL.items():
        properties[name] = {"enum": [*copy.deepcopy(values), None]}
    for name in sorted(CHAT_IGNORED):
        properties[name] = {"description": IGNORED}


def _or_null(schema: Schema) -> Schema:
    about: Schema = {name: schema.pop(name) for name in ("description", "default", "title") if name in schema}
    return {"anyOf": [schema, {"type": "null"}], **about}


def _messages(schemas: Schema) -> Schema:
    """The messages of the one question that the model takes, in place of any message."""
    name = schemas.pop("Message")["properties"]["name"]
    text, clip = _reference("TextPart"), _reference("AudioPart")
    one_clip = {"contains": clip, "minContains": 0, "maxContains": 1}
    return {
        "SystemMessage": _message(
            ["system", "developer"], {"items": text}, name, "Replaces the template's system text."
        ),
        "UserMessage": _message(
            ["user"],
            {"items": {"anyOf": [text, clip]}, **one_clip},
            name,
            "The question: text, its parts joined by line feeds, and at most one clip.",
        ),
    }


def _message(roles: list[str], parts: Schema, name: Schema, description: str) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": {
            "role": {"enum": roles},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, **parts}]},
            "name": name,
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    }


def _reference(name: str) -> Schema:
    return {"$ref": REF_TEMPLATE.format(model=name)}
