"""That the release is in the MLflow registry of this machine, whoever made it."""

import re
import subprocess
import sys

from flows.clone import Clone
from tasks.errors import InfrastructureError


def ensure_registered(clone: Clone) -> str:
    """Bring the release into this tracking server where it is not there yet, and say which version it is.

    A release that DVC restored from its cache made no MLflow run here, so the stage alone is not enough. In a
    process of its own: importing MLflow takes seconds that a pipeline without a release need not pay.

    Raises:
        InfrastructureError: the tracking server or its registry could not be used.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "ensure_registered"],
        cwd=clone.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        # what MLflow logs may stand before the message; without one, a traceback ends in the cause
        message = re.search(r"^error: (.*)", said, re.MULTILINE | re.DOTALL)
        cause = message[1] if message else said.rpartition("\n")[2]
        raise InfrastructureError(f"the release is not in the MLflow registry: {cause}")
    return done.stdout.strip().rpartition("\n")[2]
