"""The flow `reevaluate`: the champion on today's test split, as an artifact; an event where it drifted."""

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
        description=f"Version {found.version} on the {found.clips} test clips of today, the action",
    )
    told = "; ".join(
        f"{figure.name} {figure.now:.4f}, was {figure.then:.4f} "
        f"[{figure.interval[0]:.4f}, {figure.interval[1]:.4f}]"
        for figure in found.drifted or found.figures
    )
    print(f"version {found.version} {'drifted' if found.drifted else 'holds'}: {told}")
    if found.drifted:
        champion_drifted(found.version, told)
