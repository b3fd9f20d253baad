"""What STUDY.yaml may say, and the params.yaml that each of its data sets is run with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeInt, model_validator

from tasks.errors import UserError
from tasks.params import Name, Params, Student, load
from tasks.section import Section
from tasks.survey import Summary
from tasks.written_params import written_params
from tasks.yaml_file import Checked, Place, read_yaml, row_of, suggestion, validated

CLONE = "clone"
"""The source that is this clone's own data/raw."""
_ENTRIES = ("modalities", "teachers", "fused", "specialists", "students")
"""Sections of params.yaml of named entries, which a study may leave out."""
Changes = Annotated[dict[str, Any], Field(default_factory=dict)]


class DataSet(Section):
    """Clips, and the params that fit them."""

    source: str = Field(
        min_length=1,
        description="clone (this clone's own data/raw, as data.dvc has it), or what `understudy import` takes: a "
        "folder, relative to the study's file, or s3://BUCKET/PREFIX.",
    )
    params: str | None = Field(
        None,
        description="A params.yaml that the study builds on, relative to its file. Absent: the clone's own.",
    )
    changes: Changes = Field(description="What differs from those, for this data set alone; see `Study`.")


class Study(Section):
    """All of STUDY.yaml, or, where that has `extends: OTHER.yaml`, what differs from that one; see `read`."""

    name: Name = Field(description="Of the report's folder and the MLflow experiment.")
    seeds: list[NonNegativeInt] = Field(min_length=1, description="Every network is trained once a seed.")
    baseline: Name = Field(description="The method that the others are tested against.")
    data_sets: dict[Name, DataSet] = Field(min_length=1)
    methods: dict[Name, dict[str, Any]] = Field(
        min_length=2,
        description="Entries as in `students` of params.yaml. With `like: STUDENT`, what is not said is that "
        "student's, as the params of each data set have it; a section of another `kind` is replaced as a whole.",
    )
    changes: Changes = Field(
        description="What differs from the params of every data set, in the form of params.yaml: numbers, new "
        "entries, or null for an entry of modalities, teachers, fused or specialists to leave out. Students are "
        "those that methods are `like`.",
    )

    @model_validator(mode="after")
    def _names_agree(self) -> "Study":
        if self.baseline not in self.methods:
            raise ValueError(
                f"baseline: there is no {self.baseline!r}{suggestion(self.baseline, self.methods)}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: one is there twice")
        for place, changes in {
            "changes": self.changes,
            **{f"data_sets.{name}.changes": data_set.changes for name, data_set in self.data_sets.items()},
        }.items():
            if "seeds" in changes:
                raise ValueError(f"{place}.seeds: all data sets have the study's `seeds`")
        return self


@dataclass(frozen=True)
class Source:
    """STUDY.yaml, with the text that errors point into.

    Attributes:
        file: its path.
        text: what it holds.
        study: the same, checked.
        extended: the study that it extends, if any.
    """

    file: Path
    text: str
    study: Study
    extended: Study | None = None

    def refuse(self, message: str, place: Place, remedy: str = "") -> UserError:
        """An error that names the row of `place`."""
        return UserError(message, file=self.file, row=row_of(self.text, place), remedy=remedy)

    def checked(self, model: type[Checked], values: Any, data_set: str) -> Checked:
        """The params `values` of a data set as a `model`, what is wrong told with its row of the study.

        Raises:
            UserError: they are at fault.
        """
        asked: list[Place] = []

        def spelt(place: Place) -> Place:
            asked.append(_in_the_study(self, data_set, place))
            return asked[-1]

        try:
            return validated(model, values, self.text, self.file, spelt)
        except UserError as error:
            section, *names = map(str, next(filter(None, asked), ("",)))
            own = read_yaml(self.text, self.file).get(section) or {}
            if not (self.extended and names and section in ("methods", "changes")) or names[0] in own:
                raise
            inherited = (
                f"what is said here of {section}.{names[0]} takes the place of what the extended study says"
            )
            remedy = f"{error.remedy}; {inherited}" if error.remedy else inherited
            raise UserError(error.message, file=error.file, row=error.row, remedy=remedy) from None

    def path(self, name: str) -> Path:
        """A path of the study, which is relative to its file."""
        return (self.file.parent / Path(name).expanduser()).resolve()

    def base(self, data_set: str, clone_params: Path) -> Path:
        """The params.yaml that a data set builds on.

        Raises:
            UserError: the study names one that is not there.
        """
        named = self.study.data_sets[data_set].params
        if named is None:
            return clone_params
        if not self.path(named).is_file():
            raise self.refuse(f"there is no file {named!r}", ("data_sets", data_set, "params"))
        return self.path(named)


def read(file: Path) -> Source:
    """Read and check STUDY.yaml, what it extends included.

    Raises:
        UserError: it is missing, or at fault; names file and row.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("not found", file=file, remedy="benchmarks/study.yaml is one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read as text ({error})", file=file) from None
    values, extended = read_yaml(text, file), None
    if isinstance(values, dict) and "extends" in values:
        values, extended = _extended(values, text, file)
    return Source(file, text, validated(Study, values, text, file), extended)


def _extended(values: Mapping[str, Any], text: str, file: Path) -> tuple[dict[str, Any], Study]:
    """The values of a study that extends another: that one's, with its own in their place; and the other.

    Data sets are its own alone. A method of the other that is null here is left out.
    """
    own = {key: value for key, value in values.items() if key != "extends"}
    other = (file.parent / Path(str(values["extends"])).expanduser()).resolve()
    if not other.is_file():
        raise UserError(
            f"extends: there is no file {values['extends']!r}", file=file, row=row_of(text, ("extends",)),
            remedy=f"a study, its path relative to {file.parent}",
        )  # fmt: skip
    inherited = read_yaml(other.read_text(encoding="utf-8"), other)
    if isinstance(inherited, dict) and "extends" in inherited:
        raise UserError(
            f"extends: {values['extends']} extends another study itself",
            file=file,
            row=row_of(text, ("extends",)),
            remedy=f"extend {inherited['extends']}, or copy that file and change its data_sets",
        )
    study = read(other).study  # what is wrong there is told with its rows
    whole = merged({key: value for key, value in inherited.items() if key not in ("name", "data_sets")}, own)
    if isinstance(whole.get("methods"), dict):
        for name in [name for name, method in whole["methods"].items() if method is None]:
            if name not in study.methods:
                raise UserError(
                    f"methods: there is no {name!r} to leave out{suggestion(name, study.methods)}",
                    file=file,
                    row=row_of(text, ("methods", name)),
                )
        whole["methods"] = {name: method for name, method in whole["methods"].items() if method is not None}
    return whole, study


@dataclass(frozen=True)
class Composed:
    """What one data set is run with.

    Attributes:
        text: of params.yaml.
        params: the same, checked.
        left_out: method → why this data set is run without it.
        notes: what else the data made differ from the study, in sentences.
    """

    text: str
    params: Params
    left_out: Mapping[str, str]
    notes: tuple[str, ...]


def before_import(source: Source, data_set: str, clone_params: Path) -> str:
    """The text of the params.yaml that an import starts from: the base with the study's changes.

    Raises:
        UserError: see `compose`; so a method at fault is told before data is copied for hours.
    """
    base = source.base(data_set, clone_params)
    values = _changed(source, data_set, base)
    _methods(source, data_set, base, values)
    bare = _bare(values)
    source.checked(Params, bare, data_set)
    return _text(bare)


def compose(source: Source, data_set: str, clone_params: Path, found: Summary | None) -> Composed:
    """The params.yaml of one data set: its base, with the study's seeds, changes and methods.

    Args:
        source: the study.
        data_set: its name there.
        clone_params: the clone's params.yaml.
        found: what an import found in the data; None for data that the base fits already.

    Raises:
        UserError: the base is at fault, or the study in a row that is named; or the data has the senses of none
            of the teachers that any method but the baseline needs.
    """
    base = source.base(data_set, clone_params)
    values = _changed(source, data_set, base)
    values["seeds"] = source.study.seeds
    values["students"] = _methods(source, data_set, base, values)
    if values["register"]["student"] not in source.study.methods:
        values["register"]["student"] = "auto"
    left_out: dict[str, str] = {}
    notes: list[str] = []
    if found is not None:
        bare = _bare(_changed(source, data_set, base))
        current = source.checked(Params, bare, data_set)
        text, _ = written_params(_text(values), current, replace(found, notes=[]))
        left_out = _deaf(values["students"], yaml.safe_load(text))
        if source.study.baseline in left_out:
            raise source.refuse(
                f"{data_set} has no videos for the baseline: {left_out[source.study.baseline]}",
                ("methods", source.study.baseline),
            )
        if len(left_out) == len(source.study.methods) - 1:
            raise source.refuse(
                f"{data_set} has the senses of no method but the baseline",
                ("data_sets", data_set),
                "leave it out, or add a method that hears other teachers",
            )
        for name in left_out:  # before, as teachers are fitted to those that listen to them
            del values["students"][name]
        if values["register"]["student"] in left_out:
            values["register"]["student"] = "auto"
        text, notes = written_params(_text(values), current, replace(found, notes=[]))
        values = yaml.safe_load(text)
    values = _from_anywhere(values, (source.file.parent, base.parent))
    checked = source.checked(Params, values, data_set)
    return Composed(_text(values), checked, left_out, tuple(notes))


def _text(values: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(values))  # no two places share a value, so that none gets an anchor
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def _changed(source: Source, data_set: str, base: Path) -> dict[str, Any]:
    """The values of the base, with the study's changes and then the data set's, less specialists of no method."""
    load(base)
    values: dict[str, Any] = yaml.safe_load(base.read_text(encoding="utf-8"))
    inherited = source.extended.changes if source.extended else {}
    places: list[tuple[Place, dict[str, Any]]] = [
        (("changes",), source.study.changes),
        (("data_sets", data_set, "changes"), source.study.data_sets[data_set].changes),
    ]
    for place, changes in places:
        before, values = values, merged(values, changes)
        for section in _ENTRIES:
            if not isinstance(values[section], dict):
                raise source.refuse(
                    f"{section}: entries by name are meant",
                    (*place, section),
                    "null leaves out an entry, not all of them",
                )
            for name, entry in changes.get(section, {}).items():
                if name not in before[section] and entry is not None:
                    _refuse_half(source, (*place, section, name), entry, before[section])
            for name in [name for name, entry in values[section].items() if entry is None]:
                if name not in before[section] and name not in inherited.get(section, {}):
                    near = suggestion(name, before[section])
                    raise source.refuse(f"{section}: there is no {name!r}{near}", (*place, section, name))
                del values[section][name]
    return values | {"specialists": _listened_to(source, values)}


def _refuse_half(source: Source, place: Place, entry: Any, known: Mapping[str, Any]) -> None:
    """Refuse an `entry` that the params do not have and that is no whole one: a change of something misspelt."""
    whole = [set(other) for other in known.values() if isinstance(other, Mapping)]
    needed = set.intersection(*whole) if whole else set()
    if missing := sorted(needed - set(entry if isinstance(entry, Mapping) else ())):
        *_, section, name = place
        raise source.refuse(
            f"{section}: there is no {name!r}{suggestion(str(name), known)}",
            place,
            f"a new one needs {', '.join(missing)}, too; an import takes out what its data has no videos for",
        )


def _listened_to(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """The specialists that a method learns from: to train others would be for nothing, as only students need them."""
    taught = []
    for method in source.study.methods.values():
        like = values["students"].get(str(method.get("like")), {})
        taught.append(method.get("learns_from", like.get("learns_from")))
    return {
        name: entry
        for name, entry in values["specialists"].items()
        if f"artifacts/specialists/{name}" in taught
    }


def _bare(values: dict[str, Any]) -> dict[str, Any]:
    """The same without the students that hear what the study leaves out: methods take their place anyway."""
    known = {*values["teachers"], *values["fused"]}

    def has_all(student: Mapping[str, Any]) -> bool:
        if student["method"]["kind"] == "mst":
            return student["learns_from"].rpartition("/")[2] in values["specialists"]
        return set((student.get("ensemble") or student["method"]).get("teachers", [])) <= known

    kept = {name: student for name, student in values["students"].items() if has_all(student)}
    return values | {"students": kept, "register": values["register"] | {"student": "auto"}}


class _Students(Section):
    students: dict[str, Student]


def _methods(source: Source, data_set: str, base: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The study's methods as students of the params `values`, each checked by itself."""
    made = {
        name: _method(source, name, given, values["students"], base)
        for name, given in source.study.methods.items()
    }
    source.checked(_Students, {"students": made}, data_set)
    return made


def _method(
    source: Source, name: str, given: Mapping[str, Any], students: Mapping[str, Any], base: Path
) -> Any:
    changes = {key: value for key, value in given.items() if key != "like"}
    like = given.get("like")
    if "like" not in given:
        return changes
    if not isinstance(like, str) or like not in students:
        raise source.refuse(
            f"methods.{name}.like: there is no student {like!r}{suggestion(str(like), students)}",
            ("methods", name, "like"),
            f"the students of {base} are meant",
        )
    return merged(students[like], changes)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section; a section that names another `kind` is replaced as a whole."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        sections = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old or {}, value) if sections and _alike(old, value) else value
    return result


def _alike(old: Any, new: Any) -> bool:
    return bool(new.get("kind", old.get("kind")) == old.get("kind"))


def _deaf(methods: Mapping[str, Any], fitted: Mapping[str, Any]) -> dict[str, str]:
    """The methods none of whose teachers the data has senses for, with the reason.

    An import lets such a student learn from all other teachers; in a study that would be another method. One without
    specialists, or with nothing to show it, an import takes out itself.
    """
    known = {*fitted["teachers"], *fitted["fused"]}
    found = {}
    for name, method in methods.items():
        heard = (method.get("ensemble") or method["method"]).get("teachers", [])
        if name not in fitted["students"]:
            found[name] = f"the data has not what {', '.join(heard) or method['learns_from']} was made to see"
        elif heard and not set(heard) & known:
            found[name] = f"the data has nothing that its teachers see ({', '.join(heard)})"
    return found


def _from_anywhere(values: Any, folders: Sequence[Path]) -> Any:
    """`values` with each `pretrained` that is a file below one of `folders` as a path that a workspace finds, too."""
    if isinstance(values, list):
        return [_from_anywhere(value, folders) for value in values]
    if not isinstance(values, dict):
        return values
    found = {key: _from_anywhere(value, folders) for key, value in values.items()}
    if isinstance(name := values.get("pretrained"), str):
        files = (folder / Path(name).expanduser() for folder in folders)
        found["pretrained"] = next((str(file.resolve()) for file in files if file.is_file()), name)
    return found


def _in_the_study(source: Source, data_set: str, place: Place) -> Place:
    """Where STUDY.yaml has what stands at `place` of a data set's composed params."""
    if place[:1] == ("students",):
        return ("methods", *place[1:])
    of_one = source.study.data_sets[data_set].changes
    if place[:1] and place[0] in of_one:
        return ("data_sets", data_set, "changes", *place)
    return ("changes", *place) if place else place
