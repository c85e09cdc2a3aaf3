"""The part of JSON Schema that says what an answer must look like: types, properties, items, enums, bounds.

Known keywords: type, properties, required, additionalProperties (true or false), items, enum, const, minimum, maximum,
minLength, maxLength, minItems, maxItems. Any other that would restrict is refused when the schema is read, rather
than passed over. Knows nothing of scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whit.errors import UsageError
from whit.evaluation.answers import same_json

_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
_KNOWN = {
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems",
}  # fmt: skip
_WORDS = {"$schema", "$id", "$comment", "title", "description", "default", "examples"}


def load_schema(path: Path) -> Mapping[str, Any]:
    """Read and check a schema. Raises `UsageError`."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a JSON schema ({error})") from error
    _check(found, str(path))
    checked: Mapping[str, Any] = found
    return checked


def _check(schema: Any, where: str) -> None:
    if not isinstance(schema, dict):
        raise UsageError(f"{where}: a schema is an object here")
    strange = sorted(set(schema) - _KNOWN - _WORDS)
    if strange:
        raise UsageError(f"{where}: {', '.join(strange)} is not understood; known are {', '.join(sorted(_KNOWN))}")
    types = schema.get("type", [])
    for name in types if isinstance(types, list) else [types]:
        if name not in _TYPES and name not in ("number", "integer"):
            raise UsageError(f"{where}: unknown type {name!r}")
    if not isinstance(schema.get("additionalProperties", True), bool):
        raise UsageError(f"{where}: additionalProperties must be true or false")
    for key, inner in schema.get("properties", {}).items():
        _check(inner, f"{where}: {key}")
    if "items" in schema:
        _check(schema["items"], f"{where}: items")


def matches(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value is as the schema wants it."""
    types = schema.get("type")
    if types is not None and not any(_is(value, name) for name in (types if isinstance(types, list) else [types])):
        return False
    if "enum" in schema and not any(same_json(value, choice) for choice in schema["enum"]):
        return False
    if "const" in schema and not same_json(value, schema["const"]):
        return False
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        if not set(schema.get("required", ())) <= value.keys():
            return False
        if schema.get("additionalProperties") is False and not value.keys() <= inner.keys():
            return False
        return all(matches(value[key], inner[key]) for key in value.keys() & inner.keys())
    if isinstance(value, list):
        in_bounds = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return in_bounds and all(matches(item, schema.get("items", {})) for item in value)
    if isinstance(value, str):
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)))
    if _is(value, "number"):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return True


def _is(value: Any, name: str) -> bool:
    if name in ("number", "integer"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (name == "number" or float(value).is_integer())
    return isinstance(value, _TYPES[name])
