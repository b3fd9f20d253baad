"""The registry's side of the gate: which version is champion, what the gate says of the others, who moved it and why.

Aliases: `champion` is in use, `challenger` the newest registered one, `previous` the champion before this one. A move
of several aliases is first written down in a tag of the registered model, so that one that was killed on the way is
carried to its end by whatever looks at the registry next.
"""

import getpass
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tasks.atomic import digest, write_json, write_text
from tasks.clips import read_clips, read_videos
from tasks.errors import InfrastructureError, UserError
from tasks.gate import Contender, Verdict, judge, markdown
from tasks.layout import Workspace
from tasks.networks import Committee
from tasks.params import Params
from tasks.predict import download
from tasks.register import ABOUT, HISTORY, LONGEST_DESCRIPTION, MODEL, without_pictures
from tasks.rescoring import rescored
from tasks.scorecard import Scorecard
from tasks.seen import Seen
from tasks.stores import tracking
from tasks.versus.compared import Side, Versus, compared
from tasks.versus.page import render

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_KEY, _VERDICT = "gate_key", "gate_json"
_BY_THE_GATE = "by the gate (gate.promote: auto)"
_MOVE = "move_in_progress"
_PAGE = "gate.html"
_LONGEST_REASON = 500
_MOST_ROUNDS, _PATIENCE_S = 20, 20.0
_NOT_OURS = {401, 403, 404, "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED"}
"""What a server says of a run that is gone, or that belongs to somebody else: by HTTP, and by MLflow's own codes."""


@dataclass(frozen=True)
class Opened:
    """A registered version with what its release holds.

    Attributes:
        contender: as the gate sees it.
        committee: its network; None where it cannot be loaded.
        card: its model card; empty likewise.
        seen: what it learned from; None likewise, or where its release does not say.
    """

    contender: Contender
    committee: Committee | None
    card: str
    seen: Seen | None


@dataclass(frozen=True)
class _Move:
    """Aliases that change together.

    Attributes:
        kind: what a person asked for.
        version: that it is about, and whose history tells of it.
        aliases: alias → the version it is to name; None takes it away, if it names `version`.
        stamp: when, UTC.
        words: what happened, by whom and why.
    """

    kind: Literal["promotion", "rollback"]
    version: str
    aliases: Mapping[str, str | None]
    stamp: str
    words: str


def settle(params: Params, workspace: Workspace, registered: "ModelVersion") -> None:
    """Have the gate judge a version that was just registered, if it is the challenger or the first one, and say so.

    The verdict goes to the version's tags and description and to reports/gate; the same question is not asked twice.
    With `gate.promote: auto` a challenger that passes becomes champion.

    Raises:
        InfrastructureError: the registry cannot be reached or fails.
    """
    with _registry(workspace) as client:
        if finished := _finish(client):
            print(f"gate: an interrupted move was carried to its end: {finished.words}")
        version, aliases = str(registered.version), _aliases(client)
        history = [text for tag, text in registered.tags.items() if tag.startswith(HISTORY)]
        if aliases.get(CHAMPION) == version and any(_BY_THE_GATE in text for text in history):
            print(went_live(version))  # again, as whoever is to tell of it may have been away
        is_first = aliases.get(CHAMPION) == version and len(_versions(client)) == 1
        _show_as_told(client, params, workspace, registered)
        if not is_first and aliases.get(CHALLENGER) != version:
            return
        verdict = _stored_or_new(client, params, workspace, registered, aliases)
        print(f"gate: {verdict.summary}")
        if is_first and not history:
            made = datetime.fromtimestamp(registered.creation_timestamp / 1000, UTC)
            _tell(client, version, _stamp(made), f"version {version} is the first and became champion")
        if verdict.outcome != "passed" or history:  # with one, it was declined
            return
        if params.gate.promote == "auto":
            try:
                now = _as_judged(client, aliases)
                move = _promotion(now, version, _BY_THE_GATE, verdict.summary)
                print(f"gate: {_carry_out(client, move)}")
                print(went_live(version))
            except UserError as error:  # the release is registered all the same
                print(f"gate: {error}")
        else:
            print(awaits_decision(version))


def awaits_decision(version: str) -> str:
    """What is printed of a challenger that passed and that nobody promoted or declined yet."""
    return f"gate: version {version} awaits a decision: understudy promote {version}"


def went_live(version: str) -> str:
    """What is printed of a version that the gate made champion, as long as it is."""
    return f"gate: version {version} is the champion, which no person decided"


def _show_as_told(
    client: "MlflowClient", params: Params, workspace: Workspace, version: "ModelVersion"
) -> None:
    """Have reports/gate show what the gate said of a version where it was judged elsewhere, if it was."""
    told, key = version.tags.get(_VERDICT), version.tags.get(_KEY)
    if told and key and not _is_shown(workspace, key):
        verdict = Verdict.of_json(json.loads(told))
        page = _attached(client, version) or render(None, verdict, params.evaluate.bins)
        _write_report(workspace, verdict, page, key, version.tags["release_digest"])


def judged(name: str, params: Params, workspace: Workspace) -> Verdict:
    """What the gate says of a version, against the champion of today.

    Args:
        name: as for `promote`.

    Raises:
        UserError: no such version.
        InfrastructureError: the registry cannot be reached or fails.
    """
    with _registry(workspace) as client:
        _finish(client)
        return _stored_or_new(client, params, workspace, _version(client, name), _aliases(client))


def decline(name: str, workspace: Workspace, reason: str) -> str:
    """Write into a version's history that a person does not want it as champion; nothing else changes.

    Of the champion itself nothing is written.

    Args:
        name: as for `promote`.

    Returns:
        What was written, or why nothing was.

    Raises:
        UserError: no such version, or the reason is too long to be kept.
        InfrastructureError: the registry cannot be reached or fails.
    """
    _refuse_long(reason)
    with _registry(workspace) as client:
        number = str(_version(client, name).version)
        if _aliases(client).get(CHAMPION) == number:
            return f"version {number} is the champion already and was not declined (understudy rollback takes it back)"
        words = f"version {number} was declined: {reason}"
        _tell(client, number, _stamp(datetime.now(UTC)), words)
        return words


def promote(name: str, params: Params, workspace: Workspace, force: bool, reason: str) -> str:
    """Make a version champion; the champion so far becomes previous.

    Args:
        name: an alias, a version's number, or either as models:/… or for short (@challenger, v3).
        force: even though the gate did not let it pass; needs a reason.
        reason: why; kept with the version.

    Returns:
        What was done.

    Raises:
        UserError: no such version, the gate did not let it pass, or the reason is too long to be kept.
        InfrastructureError: the registry cannot be reached or fails.
    """
    _refuse_long(reason)
    if force and not reason:
        raise UserError(
            "--force needs a reason", remedy='say why, as in --force --reason "the camera changed"'
        )
    with _registry(workspace) as client:
        finished = _finish(client)
        aliases = _aliases(client)
        if finished and finished.kind == "promotion" and name == CHALLENGER and CHALLENGER not in aliases:
            return f"carried an interrupted promotion to its end: {finished.words}"
        wanted = _version(client, name)
        number = str(wanted.version)
        if aliases.get(CHAMPION) == number:
            return f"version {number} is the champion already"
        try:
            verdict = _stored_or_new(client, params, workspace, wanted, aliases)
        except InfrastructureError as error:  # the files of one of them may be gone for good
            _require_whole(wanted, workspace)
            if not force:
                raise InfrastructureError(
                    f'{error}\n  → if they are gone for good: understudy promote {name} --force --reason "…"'
                ) from error
            summary = f"not judged: {error}"[:_LONGEST_REASON]
        else:
            summary = verdict.summary
            if any(check.name == "loads" and not check.passed for check in verdict.checks):
                raise UserError(
                    f"version {number} can be nobody's champion: {summary}", remedy="register one that loads"
                )
            if verdict.outcome not in ("passed", "first") and not force:
                raise UserError(
                    f"the gate does not let version {number} replace the champion: {summary}",
                    remedy='keep the champion, or take the responsibility: --force --reason "…"',
                )
        words = f"by {_who()}" + (f", forced: {reason}" if force else f": {reason}" if reason else "")
        return _carry_out(client, _promotion(_as_judged(client, aliases), number, words, summary))


def _require_whole(version: "ModelVersion", workspace: Workspace) -> None:
    """Raise an error where a version that is to go live cannot be fetched or loaded: no server could serve it."""
    if refused := open_version(version, workspace).contender.refused:
        raise UserError(
            f"version {version.version} cannot be loaded: {refused}",
            remedy="name another: understudy promote VERSION",
        )


def _as_judged(client: "MlflowClient", aliases: Mapping[str, str]) -> dict[str, str]:
    """The aliases of now, if the champion is still the one that a version was judged against: that took minutes.

    Raises:
        UserError: another champion was made meanwhile, which the version was not judged against.
    """
    now = _aliases(client)
    if now.get(CHAMPION) != aliases.get(CHAMPION):
        raise UserError(
            f"version {now.get(CHAMPION)} became champion while this one was judged against version "
            f"{aliases.get(CHAMPION)}; nothing was moved",
            remedy="judge it against the new champion: understudy promote",
        )
    return now


def rollback(workspace: Workspace, reason: str) -> str:
    """Make the previous champion champion again; the one that it replaces becomes previous.

    Returns:
        What was done. An interrupted rollback is carried to its end and not undone.

    Raises:
        UserError: there is no previous version, it cannot be loaded, or the reason is too long to be kept.
        InfrastructureError: the registry cannot be reached or fails, or the previous version's files are gone.
    """
    _refuse_long(reason)
    with _registry(workspace) as client:
        finished = _finish(client)
        if finished and finished.kind == "rollback":
            return f"carried an interrupted rollback to its end: {finished.words}"
        aliases = _aliases(client)
        if PREVIOUS not in aliases or CHAMPION not in aliases:
            raise UserError(
                f"{MODEL} has no previous champion to go back to",
                remedy="name the version: understudy promote VERSION",
            )
        now, then = aliases[CHAMPION], aliases[PREVIOUS]
        if now == then:
            raise UserError(
                f"the previous champion is version {now}, the champion itself",
                remedy="name the version to go back to: understudy promote VERSION",
            )
        _require_whole(client.get_model_version(MODEL, then), workspace)
        if (found := _aliases(client)).get(CHAMPION) != now or found.get(PREVIOUS) != then:
            raise UserError(
                f"version {found.get(CHAMPION)} became champion while version {then} was looked at; nothing was moved",
                remedy="look at it, then roll back again: understudy rollback",
            )
        words = f"version {now} rolled back to version {then} by {_who()}" + (f": {reason}" if reason else "")
        moved = {PREVIOUS: now, CHAMPION: then}
        return _carry_out(client, _Move("rollback", now, moved, _stamp(datetime.now(UTC)), words))


def _refuse_long(reason: str) -> None:
    """A tag of MLflow holds 5,000 characters, and the reason stands in one with all else that a move is."""
    if len(reason) > _LONGEST_REASON:
        raise UserError(
            f"the reason has {len(reason)} characters, at most {_LONGEST_REASON} are kept",
            remedy="say it in a sentence",
        )


def open_version(version: "ModelVersion", workspace: Workspace) -> Opened:
    """Fetch a registered version and look at what it holds.

    Raises:
        InfrastructureError: the registry cannot be reached.
    """
    number = str(version.version)
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        try:
            release = download(f"models:/{version.name}/{number}", workspace, Path(folder))
            committee = Committee.load(release)
        except UserError as error:
            return Opened(Contender(number, error.message, unscored="it cannot be loaded"), None, "", None)
        scorecard, parity = Scorecard.read(release), release / "parity.json"
        size = sum(file.stat().st_size for file in release.glob("weights-*.safetensors"))
        contender = Contender(
            version=number,
            scorecard=scorecard,
            unscored="" if scorecard else "its release holds none",
            size_mb=size / 1e6,
            parity=json.loads(parity.read_text(encoding="utf-8")) if parity.is_file() else None,
        )
        card = (release / "model_card.md").read_text(encoding="utf-8")
        return Opened(contender, committee, card, Seen.read(release))


def _stored_or_new(
    client: "MlflowClient",
    params: Params,
    workspace: Workspace,
    version: "ModelVersion",
    aliases: Mapping[str, str],
) -> Verdict:
    """What the gate says of a version: what it said before, if nothing that it looked at has changed since.

    Judged anew, it would be measured anew, and a latency near its threshold might turn the verdict round. Of the
    champion it is what it went live by: nothing is left to hold it against.
    """
    champion = _champion(client, aliases, str(version.version))
    if told := version.tags.get(_VERDICT):
        verdict = Verdict.of_json(json.loads(told))
        is_champion = aliases.get(CHAMPION) == str(version.version)
        against = str(champion.version) if champion else None
        if is_champion or (
            version.tags.get(_KEY) == _key(params, version, champion) and verdict.against == against
        ):
            return verdict
    return _judge(client, params, workspace, version, champion)


def _judge(
    client: "MlflowClient",
    params: Params,
    workspace: Workspace,
    version: "ModelVersion",
    champion: "ModelVersion | None",
) -> Verdict:
    """Open both versions, ask the gate, and tell the registry and reports/gate."""
    ours = open_version(version, workspace)
    theirs = open_version(champion, workspace) if champion else None
    challenger, against = _measured(ours, theirs)
    if against and _is_other_data(challenger, against):
        challenger, against = _on_the_same(challenger, against, theirs, params, workspace)
    head = params.register_.head
    verdict = judge(challenger, against, params.gate, params.evaluate, head)
    key = _key(params, version, champion)
    tags = {
        "gate_verdict": verdict.outcome,
        "gate_against": verdict.against or "",
        **{
            f"gate.{check.name}": f"{'passed' if check.passed else 'FAILED'}: {check.sentence}"
            for check in verdict.checks
        },
        _VERDICT: json.dumps(verdict.as_json(), ensure_ascii=False),
    }
    for left in version.tags.keys() - tags.keys():
        # Checks that an earlier champion called for; and what vouches for the verdict before, until this one is whole.
        if left.startswith("gate.") or left == _KEY:
            client.delete_model_version_tag(MODEL, version.version, left)
    for name, value in tags.items():
        client.set_model_version_tag(MODEL, version.version, name, value)
    description = f"{markdown(verdict)}\n\n{without_pictures(ours.card)}"[:LONGEST_DESCRIPTION]
    client.update_model_version(MODEL, version.version, description=description)
    told = client.get_model_version(MODEL, version.version)
    page = render(_versus(told, champion, challenger, against, params), verdict, params.evaluate.bins)
    _attach(client, version, page)
    _write_report(workspace, verdict, page, key, version.tags.get("release_digest", ""))
    if verdict.outcome != "not comparable":  # another clone may have the data
        client.set_model_version_tag(MODEL, version.version, _KEY, key)
    return verdict


def _attached(client: "MlflowClient", version: "ModelVersion") -> str:
    """The gate's page that `_attach` added; empty where it cannot be had: what matters stands in tags as well."""
    from tasks.stores import failures

    if not version.run_id:
        return ""
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        try:
            return Path(client.download_artifacts(version.run_id, _PAGE, folder)).read_text(encoding="utf-8")
        except failures.REGISTRY:
            return ""


def _attach(client: "MlflowClient", version: "ModelVersion", page: str) -> None:
    """Add the gate's page to the run that registered the version, where there is one that we may write to."""
    import requests
    from mlflow.exceptions import MlflowException

    if not version.run_id:
        return
    try:
        client.log_text(version.run_id, page, _PAGE)
    except (MlflowException, requests.HTTPError) as error:  # the latter of the server's store of files
        if _code(error) not in _NOT_OURS:
            raise
        print(f"gate: the run of version {version.version} is gone or another's, so it gets no page")


def _code(error: Exception) -> object:
    """How MLflow, or HTTP, names an error."""
    return getattr(error, "error_code", None) or getattr(
        getattr(error, "response", None), "status_code", None
    )


def _key(params: Params, version: "ModelVersion", champion: "ModelVersion | None") -> str:
    """Names all that a verdict depends on."""
    thresholds = params.gate.model_dump(exclude={"promote"})
    evaluate = params.evaluate.model_dump(include={"bins", "bootstrap"})
    asked = [(str(each.version), each.tags.get("release_digest")) for each in (version, champion) if each]
    return digest(asked, thresholds, evaluate, params.register_.head)


def _measured(ours: Opened, theirs: Opened | None) -> tuple[Contender, Contender | None]:
    """Both with their latencies, where both can be loaded."""
    challenger = ours.contender
    if theirs is None:
        return challenger, None
    champion = theirs.contender
    if ours.committee is None or theirs.committee is None:
        return challenger, champion
    first, second = _latencies_ms([ours.committee, theirs.committee])
    return replace(challenger, latency_ms=first), replace(champion, latency_ms=second)


def _latencies_ms(committees: Sequence[Committee]) -> list[float]:
    """Time of one clip through each network on one CPU thread, taken in turn; the best of several rounds.

    The best, because whatever else runs on the machine can only add to it.
    """
    best = [float("inf")] * len(committees)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        examples = [committee.to("cpu").spec.example() for committee in committees]
        until = time.monotonic() + _PATIENCE_S
        for turn in range(_MOST_ROUNDS):
            for place, (committee, example) in enumerate(zip(committees, examples, strict=True)):
                began = time.perf_counter()
                committee.logits(example)
                best[place] = min(best[place], 1000 * (time.perf_counter() - began))
            if turn and time.monotonic() > until:
                break
    finally:
        torch.set_num_threads(threads)
    return best


def _is_other_data(challenger: Contender, champion: Contender) -> bool:
    """Whether only the champion's scores are missing, or of other clips."""
    if challenger.scorecard is None or champion.refused:
        return False
    return champion.scorecard is None or champion.scorecard.digest != challenger.scorecard.digest


def _on_the_same(
    challenger: Contender, champion: Contender, opened: Opened | None, params: Params, workspace: Workspace
) -> tuple[Contender, Contender]:
    """Both on the test clips of the challenger that the champion did not learn from, if this clone has them."""
    assert opened is not None
    assert opened.committee is not None
    assert challenger.scorecard is not None
    spec, clips, reason = opened.committee.spec, [], ""
    folder = workspace.modality(spec.modality)
    if not (workspace.index / "clips.csv").is_file() or not (folder / "manifest.json").is_file():
        reason = "the test clips are not in this clone (dvc pull brings them)"
    elif spec.heads != params.data.heads:
        reason = "it knows other heads or classes, so a person decides: understudy promote --force"
    elif spec.modality not in params.modalities or spec.modality_params != params.modalities[spec.modality]:
        reason = f"it looks at {spec.modality} that was extracted with other params"
    elif {clip.clip_id for clip in read_clips(workspace.index, "test")} != challenger.scorecard.clip_ids:
        reason = f"this clone has others than version {challenger.version} was scored on: take its commit, dvc pull"
    elif opened.seen is None:
        reason = (
            "its release does not say what it learned from, so a person decides: understudy promote --force"
        )
    elif not (clips := opened.seen.unseen(read_clips(workspace.index), read_videos(workspace.index))):
        reason = "all of them are of groups that it learned from"
    if reason:
        why = f"the test clips changed since it was, and {reason}"
        return challenger, replace(champion, scorecard=None, unscored=why)
    ids = [clip.clip_id for clip in clips]
    ours, theirs = challenger.scorecard.only(ids), rescored(opened.committee, params, workspace, clips)
    left_out = challenger.scorecard.clips - ours.clips
    return replace(challenger, scorecard=ours), replace(champion, scorecard=theirs, left_out=left_out)


def _versus(
    version: "ModelVersion",
    champion: "ModelVersion | None",
    challenger: Contender,
    against: Contender | None,
    params: Params,
) -> Versus | None:
    """The champion and the challenger side by side, if both were scored."""
    if champion is None or against is None or challenger.scorecard is None or against.scorecard is None:
        return None
    sides = Side.of(champion, against.scorecard), Side.of(version, challenger.scorecard)
    return compared(*sides, params.evaluate)


def _write_report(workspace: Workspace, verdict: Verdict, page: str, key: str, release_digest: str) -> None:
    """reports/gate: the last verdict, for people and for whoever publishes it."""
    write_text(workspace.gate / "index.html", page)
    write_text(workspace.gate / "verdict.md", markdown(verdict) + "\n")
    known = {"key": key, "release_digest": release_digest, "summary": verdict.summary}
    write_json(workspace.gate / "verdict.json", known | verdict.as_json())


def _is_shown(workspace: Workspace, key: str) -> bool:
    """Whether reports/gate has the verdict that `key` names."""
    file = workspace.gate / "verdict.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["key"] == key


def _promotion(aliases: Mapping[str, str], version: str, by: str, summary: str) -> _Move:
    before = aliases.get(CHAMPION)
    moved: dict[str, str | None] = {PREVIOUS: before} if before else {}
    moved |= {CHAMPION: version, CHALLENGER: None}
    place = f" in place of version {before}" if before else ""
    words = f"version {version} promoted{place} {by}; gate: {summary}"
    return _Move("promotion", version, moved, _stamp(datetime.now(UTC)), words)


def _carry_out(client: "MlflowClient", move: _Move) -> str:
    """Write the move down, then do it; the words of it.

    Raises:
        UserError: another move has begun since this command looked, or overtook this one.
    """
    if begun := _begun(client):
        raise UserError(f"another move is under way: {begun.words}", remedy="look at it, then run this again")
    client.set_registered_model_tag(MODEL, _MOVE, _written(move))
    return _do(client, move).words


def _finish(client: "MlflowClient") -> _Move | None:
    """Carry a move that was interrupted to its end; None where there was none."""
    begun = _begun(client)
    return _do(client, begun) if begun else None


def _begun(client: "MlflowClient") -> _Move | None:
    written = client.get_registered_model(MODEL).tags.get(_MOVE)
    return _Move(**json.loads(written)) if written else None


def _written(move: _Move) -> str:
    return json.dumps(asdict(move), ensure_ascii=False)


def _do(client: "MlflowClient", move: _Move) -> _Move:
    """Every step may have been taken before: taken again it changes nothing.

    Whoever looks meanwhile carries a move to its end as well. Then nothing is left to do here, and what they did next
    is not undone.

    Raises:
        UserError: another move was written down in place of this one: both had looked before either wrote.
    """
    for alias, version in move.aliases.items():
        if client.get_registered_model(MODEL).tags.get(_MOVE) != _written(move):
            if client.get_model_version(MODEL, move.version).tags.get(HISTORY + move.stamp) == move.words:
                return move
            raise UserError(
                f"another move overtook this one, which counts as not made: {move.words}",
                remedy="look at the versions' aliases and history in MLflow, then run this again",
            )
        if version is not None:
            client.set_registered_model_alias(MODEL, alias, version)
        elif _aliases(client).get(alias) == move.version:
            client.delete_registered_model_alias(MODEL, alias)
    _tell(client, move.version, move.stamp, move.words)
    client.delete_registered_model_tag(MODEL, _MOVE)
    return move


def _tell(client: "MlflowClient", version: str, stamp: str, words: str) -> None:
    """Add a line to the version's history, and the history of all versions to the model's page."""
    client.set_model_version_tag(MODEL, version, HISTORY + stamp, words)
    lines = [
        (key.removeprefix(HISTORY), value)
        for found in _versions(client)
        for key, value in found.tags.items()
        if key.startswith(HISTORY)
    ]
    page = f"{ABOUT}\n\n| UTC | |\n|---|---|"
    for when, what in sorted(lines, reverse=True):
        line = f"\n| {when.replace('T', ' ')[:19]} | {what.replace('|', '/')} |"
        if len(page) + len(line) > LONGEST_DESCRIPTION:
            break
        page += line
    client.update_registered_model(MODEL, description=page)


def _aliases(client: "MlflowClient") -> dict[str, str]:
    found = client.get_registered_model(MODEL).aliases
    return {alias: str(version) for alias, version in found.items()}


def _versions(client: "MlflowClient") -> "list[ModelVersion]":
    return list(client.search_model_versions(f"name = '{MODEL}'"))


def _champion(client: "MlflowClient", aliases: Mapping[str, str], version: str) -> "ModelVersion | None":
    """The champion that a version has to beat; None for the champion itself and where there is none."""
    number = aliases.get(CHAMPION)
    return None if number in (None, version) else client.get_model_version(MODEL, str(number))


def _version(client: "MlflowClient", name: str) -> "ModelVersion":
    """The version of an alias, a number, or either as models:/… or for short."""
    from mlflow.exceptions import MlflowException

    asked = tracking.address(name).removeprefix(f"models:/{MODEL}").lstrip("@/")
    try:
        if asked.isdecimal():
            return client.get_model_version(MODEL, asked)
        return client.get_model_version_by_alias(MODEL, asked)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"{MODEL} has no version {name!r}", remedy=tracking.VERSIONS) from None


@contextmanager
def _registry(workspace: Workspace) -> "Iterator[MlflowClient]":
    """A client of the registry, in which the model is there.

    Raises:
        UserError: nothing was registered yet.
        InfrastructureError: the registry cannot be reached or fails.
    """
    import requests
    from mlflow.exceptions import MlflowException

    from tasks.stores import failures

    try:
        client = tracking.client(workspace)
        try:
            client.get_registered_model(MODEL)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(f"the registry has no {MODEL} yet", remedy="run: understudy run") from None
        yield client
    except failures.REGISTRY as error:
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise  # of this machine, not of the registry
        raise InfrastructureError(
            f"the registry of MLflow at {tracking.shown_uri(workspace)} failed ({tracking.told(error, workspace)})\n"
            "  → run the same again when it is back; what was begun is then carried to its end"
        ) from error


def _stamp(moment: datetime) -> str:
    """To the millisecond: a promotion and its rollback may come within one second, and each keeps its own line."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _who() -> str:
    """The user of this process, as the operating system names it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"
