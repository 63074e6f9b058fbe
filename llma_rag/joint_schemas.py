"""Find the parts of a JSON schema that describe one object together."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote


def joint_schemas(schema: Any) -> set[int]:
    """Return the identities of the schemas in `schema` that name some of an object's properties.

    Others name further ones: beside them in `allOf`, or beside a `$ref`, `anyOf` or `oneOf`.

    >>> one, two = {"properties": {"a": {}}}, {"properties": {"b": {}}}
    >>> joint_schemas({"allOf": [one, two]}) >= {id(one), id(two)}
    True
    >>> joint_schemas({"anyOf": [one, two]})
    set()
    """
    found: set[int] = set()
    for part in _parts(schema):
        naming = [
            group
            for group in _others(part, schema)
            if any(_names_properties(one, schema, frozenset()) for one in group)
        ]
        if len(naming) + isinstance(part.get("properties"), dict) > 1:
            _join(part, schema, found)
    return found


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a schema; those that are no schemas do no harm."""
    if isinstance(schema, dict):
        yield schema
    if isinstance(schema, dict | list):
        for inner in schema.values() if isinstance(schema, dict) else schema:
            yield from _parts(inner)


def _others(part: dict[str, Any], whole: Any) -> list[list[Any]]:
    """Return the schemas that hold where `part` does; one of each list is enough."""
    lists = {
        key: part[key] for key in ("allOf", "anyOf", "oneOf") if isinstance(part.get(key), list)
    }
    groups = [[one] for one in lists.pop("allOf", [])]
    return [*groups, *lists.values(), [_target(part.get("$ref"), whole)]]


def _target(reference: Any, whole: Any) -> Any:
    """Return what a reference within the schema refers to; None if that is nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    target = whole
    for name in unquote(reference[1:]).split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, dict):
            target = target.get(name)
        else:
            return None
    return target


def _names_properties(part: Any, whole: Any, above: frozenset[int]) -> bool:
    if not isinstance(part, dict) or id(part) in above:
        return False
    above |= {id(part)}
    return isinstance(part.get("properties"), dict) or any(
        _names_properties(one, whole, above) for group in _others(part, whole) for one in group
    )


def _join(part: Any, whole: Any, found: set[int]) -> None:
    if isinstance(part, dict) and id(part) not in found:
        found.add(id(part))
        for group in _others(part, whole):
            for one in group:
                _join(one, whole, found)
