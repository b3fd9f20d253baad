"""The pull steps of deployments: the clone goes to the newest commit, its data with it; or it stays as it is.

infra/prefect.yaml names them; a worker calls one before each run, and Prefect imports the flow from the folder that it
returns. Who commits a new data.dvc has the next run take the new videos in.
"""

from flows import remote
from flows.clone import FETCH_S, Clone, of_flow
from tasks.errors import InfrastructureError, UserError


def check_out_newest() -> dict[str, str]:
    """Take the clone of the setting `clone` to the newest commit of where it was cloned from.

    What a run left of dvc.lock there is lost where a commit holds one, and DVC's run-cache knows the rest.

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
        _follow_default_branch(clone)
        clone.check_out("origin/HEAD", lock)
        remote.take_tracked(clone)
    return {"directory": str(clone.root)}


def keep_commit() -> dict[str, str]:
    """Leave the clone as its last run did, so that a flow is of the same commit as the params.yaml that it reads.

    Returns:
        the folder that the flow starts in.
    """
    return {"directory": str(of_flow(None).root)}


def _follow_default_branch(clone: Clone) -> None:
    """Have origin/HEAD name today's default branch: a fetch leaves it where it was cloned, whatever is renamed."""
    try:
        clone.git("remote", "set-head", "origin", "--auto", timeout_s=FETCH_S)
    except (UserError, InfrastructureError) as error:
        # The fetch before it worked: the branch that was the default one is better than no run.
        print(f"origin/HEAD stays as it was: {error}")
