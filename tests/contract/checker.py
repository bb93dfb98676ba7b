"""Holds what the router answered against the published OpenAPI document.

Works on plain values, so that it serves in-process tests and tests of real servers alike:

    problems = Contract.published().violations("GET", "/healthz", status, headers, body)
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, ValidationError, validators
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"

_BASE = "urn:contract"
_NATIVE = ("/v1/inference/", "/v1/limits/", "/v1/audit/", "/v1/usage/", "/v1/status/")
_LINE_END = re.compile(r"\r\n|\n|\r")


class Event(NamedTuple):
    """One server-sent event; the name of a nameless one is ``message``."""

    name: str
    data: str


class _Place(NamedTuple):
    """A part of the document and the JSON Pointer that leads to it."""

    node: Any
    pointer: str


class Contract:
    """An OpenAPI document that answers can be checked against."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        resource = Resource(contents=document, specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource(_BASE, resource)
        self._validators: dict[str, Any] = {}

    @classmethod
    @functools.cache
    def published(cls) -> Contract:
        """The contract as it is committed."""
        return cls(json.loads((CONTRACTS / "openapi.json").read_text("utf-8")))

    def violations(
        self,
        method: str,
        target: str,
        status: int,
        headers: Iterable[tuple[str, str]],
        body: bytes,
    ) -> list[str]:
        """What of an answer is not as promised; ``target`` is the request target as it was sent."""
        path = target.partition("?")[0]
        response, problem = self._response_for(method, path, status)
        if response is None:
            return [f"{method} {path}: {problem}"]
        found = {name.lower(): value for name, value in headers}
        problems = [*self._header_problems(response, found)]
        if method != "HEAD":
            problems += self._body_problems(response, found.get("content-type", ""), body)
        if status == 405 and method not in ("GET", "HEAD"):
            problems += self._allow_problems(path, found.get("allow", ""))
        return [f"{method} {path} → {status}: {problem}" for problem in problems]

    def accepts(self, path: str, fields: Any) -> bool:
        """Whether a parsed body fits what the operation at ``path`` says of its request."""
        pointer = _join("#/paths", path, "post", "requestBody", "content", "application/json")
        place = self._at(_join(pointer, "schema"))
        return not any(self._errors(place.pointer, fields))

    def errors_of(self, pointer: str, value: Any) -> list[str]:
        """Where a value does not fit the schema at a pointer, such as `#/components/schemas/X`."""
        return list(self._errors(pointer, value))

    def unseen(self, *pointers: str) -> Iterator[str]:
        """What no value had so far: properties and choices of these parts, by JSON Pointer."""
        for pointer in pointers:
            yield from _unseen(self._at(pointer).node, pointer)

    # --- which answer is promised -----------------------------------------------------------

    def _response_for(self, method: str, path: str, status: int) -> tuple[_Place | None, str]:
        template = self._template(path)
        operation = "get" if method == "HEAD" else method.lower()
        if template is not None and operation in self._document["paths"][template]:
            pointer = _join("#/paths", template, operation, "responses")
        else:
            pointer = "#/components/responses"
        responses = self._at(pointer).node
        prefix = ""
        if pointer == "#/components/responses":
            prefix = "NativePath" if _is_native(path) else "OpenAIPath"
            if status == 405 and template is None:
                return None, "405 for an unknown path"
            if status == 404 and template is not None:
                return None, "404 for a path that has other methods"
        for key in (f"{prefix}{status}", f"{prefix}{status // 100}XX"):
            if key in responses:
                return self._at(_join(pointer, key)), ""
        return None, f"the status {status} is not documented"

    def _template(self, path: str) -> str | None:
        """The path template that a path belongs to; one without variables is looked at first."""
        templates = sorted(self._document["paths"], key=lambda template: template.count("{"))
        for template in templates:
            shape = re.sub(r"\\\{\w+\\\}", ".+", re.escape(template))
            if re.fullmatch(shape, path):
                return str(template)
        return None

    # --- what is promised of it -------------------------------------------------------------

    def _header_problems(self, response: _Place, found: Mapping[str, str]) -> Iterator[str]:
        for name in response.node.get("headers", ()):
            header = self._at(_join(response.pointer, "headers", name))
            value = found.get(name.lower())
            if value is None:
                if header.node.get("required"):
                    yield f"the header {name} is missing"
                continue
            for error in self._errors(_join(header.pointer, "schema"), value):
                yield f"the header {name}: {error}"

    def _body_problems(self, response: _Place, declared: str, body: bytes) -> Iterator[str]:
        media_type = declared.partition(";")[0].strip().lower()
        if media_type not in response.node["content"]:
            yield f"the content type {declared!r} is not documented"
            return
        content = self._at(_join(response.pointer, "content", media_type))
        if media_type == "application/json":
            yield from self._json_problems(_join(content.pointer, "schema"), body)
        elif media_type == "text/event-stream":
            yield from self._stream_problems(content, body)

    def _json_problems(self, pointer: str, body: bytes) -> Iterator[str]:
        try:
            value = json.loads(body)
        except ValueError as error:
            yield f"the body is not JSON: {error}"
            return
        yield from self._errors(pointer, value)

    def _stream_problems(self, content: _Place, body: bytes) -> Iterator[str]:
        ended = False
        for event in events_of(body):
            if ended:
                yield f"an event {event.name!r} after the last one"
            if event.name not in content.node["x-events"]:
                yield f"the event {event.name!r} is not documented"
                continue
            ended = event.name in ("done", "error") or event.data == "[DONE]"
            if event.data != "[DONE]":
                schema = _join(content.pointer, "x-events", event.name)
                yield from self._json_problems(schema, event.data.encode())

    def _allow_problems(self, path: str, allow: str) -> Iterator[str]:
        item = self._document["paths"][self._template(path)]
        methods = {name.upper() for name in item if name in ("get", "post", "put", "delete")}
        if "GET" in methods:
            methods.add("HEAD")
        if set(allow.split(", ")) != methods:
            yield f"Allow says {allow!r}, the document says {sorted(methods)}"

    # --- JSON Schema ------------------------------------------------------------------------

    def _errors(self, pointer: str, value: Any) -> Iterator[str]:
        validator = self._validators.get(pointer)
        if validator is None:
            reference = {"$ref": _BASE + pointer.replace("%", "%25")}
            validator = self._validators[pointer] = _Validator(reference, registry=self._registry)
        for error in validator.iter_errors(value):
            place = "/".join(str(part) for part in error.absolute_path)
            yield f"/{place}: {error.message[:300]}"

    def _at(self, pointer: str) -> _Place:
        """The part at a pointer, behind any references."""
        node: Any = self._document
        for part in pointer.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        if isinstance(node, dict) and "$ref" in node:
            return self._at(node["$ref"])
        return _Place(node, pointer)


def events_of(body: bytes) -> Iterator[Event]:
    """The events of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    name, data = "", []
    for line in _LINE_END.split(body.decode("utf-8")):
        if not line:
            if data:
                yield Event(name or "message", "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


def _unseen(node: Any, pointer: str) -> Iterator[str]:
    if isinstance(node, list):
        for index, inner in enumerate(node):
            yield from _unseen(inner, _join(pointer, str(index)))
    elif isinstance(node, dict):
        for keyword in ("properties", "enum"):
            for name in node.get(keyword, ()):
                if (id(node[keyword]), name) not in _seen:
                    yield _join(pointer, keyword, str(name))
        for name, inner in node.items():
            yield from _unseen(inner, _join(pointer, name))


def _is_native(path: str) -> bool:
    return f"{path}/".startswith(_NATIVE) or not path.startswith("/v1/")


def _join(pointer: str, *parts: str) -> str:
    return "/".join([pointer, *(part.replace("~", "~0").replace("/", "~1") for part in parts)])


def _properties(validator: Any, properties: Any, value: Any, schema: Any) -> Iterator[Any]:
    """Notes which properties were there."""
    if isinstance(value, dict):
        _seen.update((id(properties), name) for name in properties if name in value)
    yield from Draft202012Validator.VALIDATORS["properties"](validator, properties, value, schema)


def _enum(validator: Any, choices: Any, value: Any, schema: Any) -> Iterator[Any]:
    """Notes which of the choices was taken."""
    _seen.update((id(choices), choice) for choice in choices if choice == value)
    yield from Draft202012Validator.VALIDATORS["enum"](validator, choices, value, schema)


def _pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Iterator[Any]:
    """`$` as ECMA-262 has it, which OpenAPI prescribes: Python's also stops before a line feed."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


_seen: set[tuple[int, Any]] = set()
"""Properties and choices that a value had so far: the schema's part by identity, and the name."""

_Validator = validators.extend(
    Draft202012Validator, {"pattern": _pattern, "properties": _properties, "enum": _enum}
)
