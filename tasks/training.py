"""The one training loop, for teachers, baseline and students: AMP, clipping, warm-up, EMA, exact resume.

A training is a pure function of its arguments: the order of clips and the randomness of dropout are drawn anew
for every epoch from (seed, epoch). So a checkpoint at the end of an epoch is all that a killed run needs to end
in the same weights as one that was left alone (on the CPU to the bit).

With several devices all of this runs once a rank (`tasks.ranks`), each of which is shown its share of every batch.
"""

import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import timm.optim
import torch
from timm.utils import ModelEmaV3
from torch import nn

from models.distill.method import Losses
from models.network import Network, Output
from tasks import ranks
from tasks.atomic import new_file
from tasks.batches import Batch
from tasks.errors import UserError
from tasks.gathering import add_up_gradients, partly, whole
from tasks.inference import device
from tasks.params import Training
from tasks.progress import Progress

Epoch = dict[str, float]
"""What an epoch came to: epoch, learning_rate, train_loss, the losses' parts, validation figures, seconds."""


@dataclass(frozen=True)
class Course:
    """One training, told apart from all others.

    Attributes:
        title: shown while it runs.
        training: budget and recipe.
        seed: of weights, order and dropout.
        clips: how many there are to learn from.
        shown: how many of them an epoch shows; the others wait for the next.
        batches: renders the batches of (row, view number) pairs it is given.
        objective: loss of what the network says of a batch, at a share of the training that is done.
        moments: whether the objective looks at the features of moments.
        companion: layers that the objective trains beside the network; thrown away after.
        validate: figures of the network as it stands, prefixed `val_`.
        checkpoint: file that outlives a killed run; named by everything the training depends on.
        saved: told of every checkpoint, by how many epochs it holds.
        log: told of every epoch, those that a killed run had done before among them.
    """

    title: str
    training: Training
    seed: int
    clips: int
    shown: int
    batches: Callable[[Sequence[Sequence[tuple[int, int]]]], Iterable[Batch]]
    objective: Callable[[Output, Batch, float], Losses]
    moments: bool
    companion: nn.Module
    validate: Callable[[Network], dict[str, float]]
    checkpoint: Path
    saved: Callable[[int], None]
    log: Callable[[Epoch], None]


def _without_decay(trained: nn.Module) -> set[str]:
    """Parameters beside biases and norms that do not decay: what timm's networks name, and the positions of Swin.

    torchvision's networks name none; its own recipe of Swin spares these (references/classification).
    """
    named = {
        f"{place}.{name}"
        for place, module in trained.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    return named | {"*relative_position_bias_table"}


def fit(network: Network, course: Course) -> tuple[Network, list[Epoch]]:
    """Train `network` to the end of its course, from its checkpoint if there is one.

    Returns:
        the network to keep (the moving average of the weights if `training.ema`), on the CPU in evaluation
        mode, and the history of all epochs.

    Raises:
        UserError: a loss that is not a number, after which nothing that was done before is lost; fewer clips than
            devices.
    """
    if course.shown < ranks.count():
        raise UserError(
            f"{course.title}: {ranks.count()} devices share {course.shown} clips", remedy="lower `devices`"
        )
    training, there = course.training, device()
    trained = nn.ModuleList([network, course.companion]).to(there)
    groups = timm.optim.param_groups_weight_decay(
        trained, training.weight_decay, no_weight_decay_list=_without_decay(trained)
    )
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    # Warming up, it follows the first steps: of a short training the weights that it began with would be half of it.
    average = ModelEmaV3(network, decay=training.ema, use_warmup=True) if training.ema else None
    history = _resume(course.checkpoint, trained, optimizer, average)
    steps = max(1, course.shown // training.batch)
    with Progress(course.title, training.epochs, "epochs") as progress:
        progress.advance(len(history))
        for past in history:
            course.log(past)
        for epoch in range(len(history), training.epochs):
            # The first rank alone saves and tells MLflow, which may take minutes; GPUs give each other up sooner.
            ranks.wait_for_all()
            begin = time.monotonic()
            losses = _one_epoch(trained, optimizer, average, course, epoch, steps)
            kept = average.module if average is not None else network
            rate = training.learning_rate * rate_factor(training, (epoch + 1) * steps - 1, steps)
            figures = {"epoch": epoch, "learning_rate": rate} | losses | course.validate(kept.eval())
            history.append(figures | {"seconds": time.monotonic() - begin})
            if ranks.is_first():
                _save(course.checkpoint, trained, optimizer, average, history)
                course.saved(len(history))
            course.log(history[-1])
            progress.advance(
                note=f"loss {figures['train_loss']:.3f}, val top1 {figures.get('val_top1', math.nan):.3f}"
            )
    kept = average.module if average is not None else network
    return kept.cpu().eval(), history


def _one_epoch(
    trained: nn.ModuleList,
    optimizer: torch.optim.Optimizer,
    average: ModelEmaV3 | None,
    course: Course,
    epoch: int,
    steps: int,
) -> dict[str, float]:
    """Show the clips of one epoch; the mean losses as `train_loss` and `train_<part>`."""
    training, there = course.training, device()
    torch.manual_seed(_mixed(course.seed, epoch))
    network, companion = trained.train()
    totals: dict[str, float] = {}
    shown = 0
    places = epoch_places(course.clips, course.shown, training.batch, course.seed, epoch)
    mine = course.batches([ranks.share(part) for part in places])
    for step, (places_of_all, batch) in enumerate(zip(places, mine, strict=True), start=epoch * steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * rate_factor(training, step, steps)
        batch = batch.to(there)
        with arithmetic(training, there), partly(network):
            output = network(batch.inputs)
        output, batch = whole(output, batch, places_of_all, course.moments)
        losses = course.objective(output, batch, step / (training.epochs * steps))
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        add_up_gradients(network, companion)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), training.clip_norm)
        told = {"loss": losses.total, **losses.parts, **(losses.figures or {})}
        gradient, *values = _numbers([norm, *told.values()], there)
        if not all(map(math.isfinite, (gradient, values[0]))):
            named = dict(zip(told, values, strict=True)) | {"gradient": gradient}
            _refuse_no_number(named, course, epoch, step - epoch * steps)
        optimizer.step()
        if average is not None:
            average.update(network, step)
        shown += len(batch.rows)
        for part, value in zip(told, values, strict=True):
            totals[f"train_{part}"] = totals.get(f"train_{part}", 0.0) + value * len(batch.rows)
    return {part: total / shown for part, total in totals.items()}


def arithmetic(training: Training, there: torch.device) -> torch.autocast:
    """The context in which networks on a device run forward in the training's precision."""
    return torch.autocast(there.type, torch.bfloat16, enabled=training.precision == "bfloat16")


def _numbers(scalars: Sequence[torch.Tensor], there: torch.device) -> list[float]:
    """What scalars are; all at once, as a GPU is waited for at every look."""
    found: list[float] = torch.stack([scalar.detach().to(there) for scalar in scalars]).tolist()
    return found


def _refuse_no_number(values: dict[str, float], course: Course, epoch: int, batch: int) -> NoReturn:
    """Stop before weights are spoilt: what is kept on disk is always sound."""
    bad = ", ".join(f"the {name} is {value}" for name, value in values.items() if not math.isfinite(value))
    remedy = "lower learning_rate or clip_norm"
    if epoch == batch == 0:
        remedy = "no step was taken yet: look at the method's loss, and at weights that training began from"
    if course.training.precision != "float32":
        remedy += ", or use precision float32"
    raise UserError(f"{course.title}: {bad} in epoch {epoch + 1}, batch {batch + 1}", remedy=remedy)


def epoch_places(clips: int, shown: int, batch: int, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """The batches of an epoch as (row, round) pairs.

    Clips are shown round after round, each once a round, in an order of this seed and round's own; an epoch is the next
    `shown` of them. What is left over after full batches is spread over them, so that no batch is too small to
    normalise over.
    """
    first, last = epoch * shown, (epoch + 1) * shown
    rounds = range(first // clips, (last - 1) // clips + 1)
    stream = [
        (int(row), number)
        for number in rounds
        for row in np.random.default_rng([seed, number]).permutation(clips)
    ]
    begin = first - rounds[0] * clips
    parts = np.array_split(np.arange(begin, begin + shown), max(1, shown // batch))
    return [[stream[place] for place in part] for part in parts]


def rate_factor(training: Training, step: int, steps: int) -> float:
    """The learning rate of `step` as a share of its peak, `steps` being those of an epoch.

    Rises linearly over the warm-up, then falls to zero at the end, linearly or as a half cosine.
    """
    warmup, total = training.warmup_epochs * steps, training.epochs * steps
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 1 - done if training.decay == "linear" else (1 + math.cos(math.pi * done)) / 2


def _mixed(seed: int, epoch: int) -> int:
    others = [ranks.rank()] if ranks.rank() else []  # who sees other clips drops other features
    return int(np.random.SeedSequence([seed, epoch, *others]).generate_state(1, np.uint64)[0] >> 1)


def _save(
    file: Path,
    trained: nn.ModuleList,
    optimizer: torch.optim.Optimizer,
    average: ModelEmaV3 | None,
    history: list[Epoch],
) -> None:
    state = {
        "trained": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.module.state_dict() if average is not None else None,
        "history": history,
    }
    for leftover in file.parent.glob(
        f".{file.name}.*"
    ):  # of a run killed while it saved; a stage has one writer
        leftover.unlink()
    whole = io.BytesIO()  # torch hides a full disk behind an error of its own
    torch.save(state, whole)
    with new_file(file) as temporary:
        temporary.write_bytes(whole.getbuffer())


def _resume(
    file: Path, trained: nn.ModuleList, optimizer: torch.optim.Optimizer, average: ModelEmaV3 | None
) -> list[Epoch]:
    """Take up where a killed run stopped; the history so far, empty if there was none."""
    if not file.exists():
        return []
    # Everything is copied to where it belongs. AdamW counts its steps on the CPU: on a GPU each would be waited for.
    state = torch.load(file, map_location="cpu", weights_only=True)
    trained.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.module.load_state_dict(state["average"])
    history: list[Epoch] = state["history"]
    return history
