"""A YAML file that a person wrote, as a checked section; what is wrong is told with its row and the nearest key."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from tasks.errors import UserError
from tasks.section import Section

Checked = TypeVar("Checked", bound=Section)
Place = tuple[int | str, ...]
"""Keys and list positions that lead to a value of a YAML file."""


def read_yaml(text: str, file: Path) -> Any:
    """What the YAML `text` of `file` holds.

    Raises:
        UserError: not YAML; names file and row.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"not valid YAML: {getattr(error, 'problem', error)}",
            file=file,
            row=None if mark is None else mark.line + 1,
        ) from None


def validated(
    model: type[Checked], values: Any, text: str, file: Path, spelt: Callable[[Place], Place] = tuple
) -> Checked:
    """`values` as a `model`.

    Args:
        text: of the file that a person is to mend.
        file: its path.
        spelt: where the file has what lies at a place of `values`, if they were not read from it as they are.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing or impossible value; names file and row.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # A misspelt key is reported twice, as unknown and as missing; the first tells more.
        first, *others = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        place = first["loc"]
        name = ".".join(str(part) for part in spelt(tuple(_without_tags(place, values))))
        if first["type"] == "extra_forbidden":
            message = f"unknown key {name}{suggestion(str(place[-1]), _fields_at(model, place))}"
        elif first["type"] == "union_tag_invalid":
            known = [tag.strip().strip("'") for tag in first["ctx"]["expected_tags"].split(",")]
            tag = first["ctx"]["tag"]
            message = f"{name}.kind: there is no {tag!r}{suggestion(tag, known)}"
        elif first["type"] == "missing":
            message = f"missing key {name}"
        else:
            message = f"{name}: {first['msg'].removeprefix('Value error, ')}" if name else first["msg"]
        message = message.removeprefix("Value error, ")
        if not place:  # two sections disagree; the message begins with the place
            where, colon, rest = message.partition(":")
            place = tuple(where.split("."))
            message = ".".join(str(part) for part in spelt(place)) + colon + rest
        row = row_of(text, spelt(place))
        # An alias, or a value that fits no member of a union, is one mistake reported several times.
        rows = sorted({found for other in others if (found := row_of(text, spelt(other["loc"])))} - {row})
        more = f"more to mend in row {', '.join(map(str, rows))}" if rows else ""
        raise UserError(message, file=file, row=row, remedy=more) from None


def suggestion(name: str, names: Any) -> str:
    """The end of a sentence about an unknown `name`: the nearest known one, or all of them."""
    near = difflib.get_close_matches(str(name), [str(n) for n in names], n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(map(str, names))})"


def _fields_at(model: Any, place: Place) -> list[str]:
    """The keys that a file of `model` allows beside the one at `place`."""
    for part in place[:-1]:
        model = _step(model, part)
        if model is None:
            return []
    fields = getattr(model, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _step(model: Any, part: int | str) -> Any:
    """The model one key further down, through dicts, optionals and unions tagged by `kind`."""
    if hasattr(model, "model_fields"):
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
        return None
    if get_origin(model) is dict:
        return get_args(model)[1]
    choices = [choice for choice in get_args(model) if choice not in (str, type(None))]
    for choice in choices:
        for candidate in (choice, *getattr(choice, "__args__", ())):
            kind = getattr(candidate, "model_fields", {}).get("kind")
            if kind is not None and part in getattr(kind.annotation, "__args__", ()):
                return candidate
    models = [choice for choice in choices if hasattr(choice, "model_fields") or hasattr(choice, "__args__")]
    return models[0] if models else None


def row_of(text: str, place: Place) -> int | None:
    """The row in which the value at `place` of a YAML text stands; where it is not there, what holds it."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    row = None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                continue  # a union's tag is part of pydantic's place but not of the file
            row, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            row = node.start_mark.line + 1
    return row


def _without_tags(place: Place, values: Any) -> list[int | str]:
    """A place as the file spells it: pydantic puts the `kind` or type of a union's member into it as well."""
    spelt: list[int | str] = []
    for number, part in enumerate(place):
        if number and not isinstance(values, (dict, list)):
            break
        is_tag = isinstance(values, dict) and part not in values and values.get("kind") == part
        if not (is_tag and number < len(place) - 1):
            spelt.append(part)
            known = isinstance(values, dict) and part in values
            values = values[part] if known or isinstance(values, list) else None
    return spelt
