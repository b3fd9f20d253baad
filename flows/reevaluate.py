"""The flow `reevaluate`: the champion on the test clips that came since, as an artifact; an event where it drifted."""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.clone import of_flow
from flows.events import champion_drifted
from tasks.layout import Workspace
from tasks.params import load
from tasks.reevaluate import Reevaluation
from tasks.reevaluate import reevaluate as score


@flow(log_prints=True, persist_result=False)
def reevaluate(root: Path | None = None) -> None:
    """Score the champion on the test split of the clone, and tell where it left its interval.

    Args:
        root: The clone to work in, with what its last run made. Default: UNDERSTUDY_CLONE, else the current folder.
    """
    clone = of_flow(root)
    with clone.only_run():
        found = score(load(clone.root / "params.yaml"), Workspace(clone.root))
    publish(found)


def publish(found: Reevaluation) -> None:
    """Show it as an artifact of this flow run, and tell where the champion drifted."""
    create_table_artifact(
        [
            {
                "figure": figure.name,
                "at registration": round(figure.then, 4),
                "interval": "{:.4f} to {:.4f}".format(*figure.interval),
                "now": round(figure.now, 4),
                "drifted": "yes" if figure.drifted else "no",
            }
            for figure in found.figures
        ],
        key="champion",
        description=f"Version {found.version} on {_clips(found)}, the action. Intervals are of clips drawn one by one: "
        "where few groups are new, they are too narrow",
    )
    told = "; ".join(
        f"{figure.name} {figure.now:.4f}, was {figure.then:.4f} "
        f"[{figure.interval[0]:.4f}, {figure.interval[1]:.4f}]"
        for figure in found.drifted or found.figures
    )
    print(f"version {found.version} {'drifted' if found.drifted else 'holds'} on {_clips(found)}: {told}")
    if found.drifted:
        champion_drifted(found.version, told)


def _clips(found: Reevaluation) -> str:
    """What it was judged by."""
    if found.since:
        return f"the {found.since} of {found.clips} test clips that came since its registration"
    return f"{found.clips} test clips, none of which came since its registration"
