"""params.yaml rewritten for what a raw folder holds: its heads, no modality or teacher that it cannot have."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, get_args

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from models.distill import Method
from tasks.params import Params
from tasks.survey import LISTENED_TO, Summary

_FOLDS = 3
_UNMEASURED = {"distillation_weight": "auto", "ground_truth_weight": 0.5, "unlabelled_weight": "auto"}
"""What validation is to settle for a student."""
_NEED_HINTS = {
    get_args(method.model_fields["kind"].annotation)[0]
    for method in get_args(get_args(Method)[0])
    if method.needs_hints
}
"""The kinds of methods that learn from features."""


def written_params(text: str, current: Params, found: Summary) -> tuple[str, list[str]]:
    """The text of params.yaml rewritten, comments kept, and sentences on what changed beside `data`.

    Args:
        text: of params.yaml.
        current: what it says.
        found: in the raw folder.
    """
    writer = YAML()
    writer.preserve_quotes = True
    writer.width = 4096  # lines stay as they are
    writer.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    draft = _Draft(writer.load(text), current, found)
    draft.describe_data()
    draft.drop_modalities()
    draft.drop_teachers()
    draft.drop_fused()
    draft.drop_specialists()
    draft.drop_students()
    draft.mend_ensembles()
    draft.mend_lessons()
    draft.mend_folds()
    draft.mend_head_weights()
    stream = StringIO()
    writer.dump(draft.document, stream)
    return stream.getvalue(), draft.notes


@dataclass
class _Draft:
    """params.yaml on its way: each step relies on those before it.

    Attributes:
        document: the YAML, changed in place.
        current: what it said at first.
        found: in the raw folder.
        notes: what changed, in sentences.
    """

    document: Any
    current: Params
    found: Summary
    notes: list[str] = field(default_factory=list)

    def describe_data(self) -> None:
        """Name, format, heads and slices are those of the raw folder."""
        data = self.document["data"]
        data["name"], data["format"] = _scalar(self.found.name), self.found.format
        data["heads"] = {head: _list(classes) for head, classes in self.found.heads.items()}
        data["slices"] = _list(self.found.slices)
        if self.document["register"]["head"] not in (*self.found.heads, "action"):
            self.document["register"]["head"] = "action"
            self.notes.append("register.head is now action")

    def drop_modalities(self) -> None:
        """No modality that no video has."""
        there = {"audio": self.found.sound, "detections": self.found.detections}
        for name, modality in self.current.modalities.items():
            if not there.get(modality.kind, True):
                del self.document["modalities"][name]
                asked = f" of the {LISTENED_TO} looked at" if self._is_sampled(modality.kind) else ""
                self.notes.append(f"no video{asked} has {modality.kind}: modalities.{name} is taken out")
        kinds = {modality.kind for modality in self.current.modalities.values()}
        self.notes.extend(
            f"some videos have {kind}, but params.yaml names no such modality"
            for kind in there
            if there[kind] and kind not in kinds
        )

    def _is_sampled(self, kind: str) -> bool:
        return kind == "audio" and self.found.videos - len(self.found.missing_videos) > LISTENED_TO

    def drop_teachers(self) -> None:
        """No teacher of a modality that is gone."""
        for name, teacher in self.current.teachers.items():
            if teacher.modality not in self.document["modalities"]:
                del self.document["teachers"][name]
                self.notes.append(f"teachers.{name} is taken out with it")

    def drop_fused(self) -> None:
        """Fused teachers of what is left."""
        for name, fused in self.current.fused.items():
            left = self._left(fused.teachers)
            if len(left) < 2:
                del self.document["fused"][name]
                self.notes.append(f"fused.{name} is taken out, as fewer than two of its teachers are left")
            elif len(left) < len(fused.teachers):
                self.document["fused"][name]["teachers"] = _list(left)
                self.notes.append(f"fused.{name} is now made of {', '.join(left)}")

    def drop_specialists(self) -> None:
        """Specialists of what is left."""
        for name, specialists in self.current.specialists.items():
            left = self._left(specialists.auxiliaries)
            if not left or specialists.fused not in self.document["fused"]:
                del self.document["specialists"][name]
                self.notes.append(f"specialists.{name} is taken out, as teachers of it are missing")
            elif len(left) < len(specialists.auxiliaries):
                self.document["specialists"][name]["auxiliaries"] = _list(left)
                self.notes.append(f"specialists.{name} now has the auxiliaries {', '.join(left)}")

    def drop_students(self) -> None:
        """No student whose lesson is gone as a whole."""
        for name, student in list(self.document["students"].items()):  # a study has others than `current`
            method = student["method"]
            if method["kind"] == "mst":
                if student["learns_from"].rpartition("/")[2] not in self.document["specialists"]:
                    self._drop_student(name, "its specialists are")
            elif method["kind"] == "omnivorous":
                left = self._left(method["teachers"])
                method["teachers"] = _list(left)
                if not left:
                    self._drop_student(name, "nothing beside RGB is left to show it")

    def _drop_student(self, name: str, reason: str) -> None:
        del self.document["students"][name]
        self.notes.append(f"students.{name} is taken out, as {reason}")
        if self.document["register"]["student"] == name:
            self.document["register"]["student"] = "auto"

    def mend_ensembles(self) -> None:
        """Students listen to teachers that are left, to all where theirs are gone."""
        teachers = self.document["teachers"]
        known = {*teachers, *self.document["fused"]}
        for name, student in self.document["students"].items():
            heard = (student.get("ensemble") or {}).get("teachers", [])
            for teacher in [teacher for teacher in heard if teacher not in known]:
                heard.remove(teacher)
            lesson, _, teacher = student["learns_from"].rpartition("/")
            is_lost = lesson == "artifacts/teachings" and teacher not in known
            if is_lost:
                student["learns_from"] = lesson
            needs_hints = student["method"]["kind"] in _NEED_HINTS
            is_hintless = needs_hints and not any(
                teacher in teachers for teacher in heard
            )  # fused ones give none
            if student.get("ensemble") and (is_lost or is_hintless or not heard):
                heard.extend(name for name in teachers if name not in heard)
                self.notes.append(f"students.{name} now learns from all teachers")
            of_one = [teachers[teacher] for teacher in heard if teacher in teachers]
            if needs_hints and not any(teacher["hints"] for teacher in of_one):
                for teacher in of_one:
                    teacher["hints"] = True
                self.notes.append(f"students.{name} now has hints of all its teachers")

    def mend_lessons(self) -> None:
        """A student that listened on unlabelled clips alone, where there are none, listens on labelled ones.

        On those its teachers have to be cross-fitted, and how far they help is not known yet. All teachers get their
        folds at once, since a fused one needs as many of each.
        """
        if self.found.unlabelled:
            return
        idle = {
            name: student["method"]
            for name, student in self.document["students"].items()
            if student["method"].get("unlabelled_weight") and student["method"]["distillation_weight"] == 0
        }
        for name, method in idle.items():
            self._settle_anew(name, method)
        for name, teacher in self.document["teachers"].items() if idle else []:
            if teacher["folds"] == 1:
                teacher["folds"] = _FOLDS
                self.notes.append(
                    f"teachers.{name} is cross-fitted in {_FOLDS} folds, since no clip is marked unlabelled"
                )

    def mend_folds(self) -> None:
        """No more folds than there are groups to train on."""
        for name, teacher in self.document["teachers"].items():
            if teacher["folds"] > self.found.training_groups:
                teacher["folds"] = max(1, self.found.training_groups)
                self.notes.append(
                    f"teachers.{name} gets {teacher['folds']} fold(s), as many as there are training groups"
                )

    def mend_head_weights(self) -> None:
        """What was weighed head by head is measured anew where the heads are others."""
        for name, student in self.document["students"].items():
            method = student["method"]

            def is_stale(weight: str, method: Any = method) -> bool:
                value = method.get(weight)
                return isinstance(value, dict) and value.keys() != self.found.heads.keys()

            if is_stale("head_weights"):
                method["head_weights"] = None
                self.notes.append(f"students.{name} now weighs all heads alike")
            if any(is_stale(weight) for weight in _UNMEASURED):
                self._settle_anew(name, method)

    def _settle_anew(self, name: str, method: Any) -> None:
        method.update(_UNMEASURED)
        changed = ", ".join(f"{weight} {value}" for weight, value in _UNMEASURED.items())
        self.notes.append(f"students.{name} now has {changed}: validation settles what is auto")

    def _left(self, teachers: Sequence[str]) -> list[str]:
        return [teacher for teacher in teachers if teacher in self.document["teachers"]]


def _list(texts: Sequence[str]) -> CommentedSeq:
    """A YAML list in brackets."""
    sequence = CommentedSeq(_scalar(text) for text in texts)
    sequence.fa.set_flow_style()
    return sequence


def _scalar(text: str) -> str:
    """`text`, quoted where YAML would read it as something else (no, 1e3, 2024-01-01)."""
    try:
        plain = yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    return text if plain else DoubleQuotedScalarString(text)
