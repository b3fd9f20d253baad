"""The pull step of deployments whose flows coordinate: the clone goes to the newest commit, its data with it.

infra/prefect.yaml names it; a worker calls it before each run. Who commits a new data.dvc has the next run take the new
videos in.
"""

from flows import remote
from flows.clone import of_flow


def check_out_newest() -> dict[str, str]:
    """Take the clone of the setting `clone` to the newest commit of where it was cloned from.

    What a run left of dvc.lock there is lost: the commit says it anew, and DVC's run-cache knows the rest.

    Returns:
        the folder that the flow starts in.

    Raises:
        UserError: another run is going on in the clone, somebody changed files there, or nobody pushed the data.
        InfrastructureError: git cannot reach where it was cloned from, or the DVC remote failed, again and again; or
            the disk is full.
    """
    clone = of_flow(None)
    with clone.only_run() as lock:
        clone.finish_check_out(lock)
        clone.refuse_changes("a coordinator's clone follows its origin: commit and push it, or drop it")
        clone.fetch()
        clone.check_out("origin/HEAD", lock)
        remote.take_tracked(clone)
    return {"directory": str(clone.root)}
