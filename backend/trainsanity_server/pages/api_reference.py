"""The reference of the HTTP API, made from what the server itself says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trainsanity_server.pages.render import render

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Field:
    """A parameter, or a field of a shape."""

    name: str
    kind: str
    where: str
    is_required: bool
    text: str


@dataclass(frozen=True)
class Call:
    """Attributes:
    answers: status, description, and the name of the answer's shape where it has one.
    """

    id: str
    method: str
    path: str
    text: str
    parameters: list[Field]
    body: str
    answers: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Shape:
    name: str
    text: str
    fields: list[Field]


@router.get("/docs", name="page_api_reference")
def api_reference(request: Request) -> Response:
    document = request.app.openapi()
    by_tag: dict[str, list[Call]] = {}
    for tag, call in _calls(document):
        by_tag.setdefault(tag, []).append(call)
    shapes = document.get("components", {}).get("schemas", {})
    return render(
        request,
        "pages/api_reference.html",
        groups=by_tag,
        shapes=[_shape(name, shape) for name, shape in shapes.items() if "properties" in shape],
        shape_names=set(shapes),
    )


def _calls(document: Mapping[str, Any]) -> Iterator[tuple[str, Call]]:
    for path, methods in document.get("paths", {}).items():
        for method, operation in methods.items():
            tag = next(iter(operation.get("tags", ())), "server")
            yield tag, _call(path, method, operation)


def _call(path: str, method: str, operation: Mapping[str, Any]) -> Call:
    return Call(
        id=operation.get("operationId", f"{method}-{path}"),
        method=method.upper(),
        path=path,
        text=operation.get("description", ""),
        parameters=[_parameter(parameter) for parameter in operation.get("parameters", ())],
        body=", ".join(
            f"{media} {_kind(content.get('schema', {}))}".strip()
            for media, content in operation.get("requestBody", {}).get("content", {}).items()
        ),
        answers=[
            (status, answer.get("description", ""), _answer_shape(answer))
            for status, answer in operation.get("responses", {}).items()
        ],
    )


def _parameter(parameter: Mapping[str, Any]) -> Field:
    schema = parameter.get("schema", {})
    return Field(
        parameter["name"],
        _kind(schema),
        parameter.get("in", ""),
        bool(parameter.get("required")),
        parameter.get("description", schema.get("description", "")),
    )


def _answer_shape(answer: Mapping[str, Any]) -> str:
    contents = answer.get("content", {}).values()
    return next((_kind(content.get("schema", {})) for content in contents), "")


def _shape(name: str, shape: Mapping[str, Any]) -> Shape:
    required = shape.get("required", ())
    fields = [
        Field(field, _kind(schema), "", field in required, schema.get("description", ""))
        for field, schema in shape["properties"].items()
    ]
    return Shape(name, shape.get("description", ""), fields)


def _kind(schema: Mapping[str, Any]) -> str:
    """A type in words: `list of Run`, `integer or null`, `one of "open", "muted"`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return "one of " + ", ".join(f'"{value}"' for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_kind(option) for option in schema[key]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {})) or 'values'}"
    kind = str(schema.get("format") or schema.get("type", ""))
    return f"{kind} {schema['minimum']} or more" if "minimum" in schema else kind
