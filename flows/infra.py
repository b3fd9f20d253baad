"""Names of a team's installation, which infra/prefect.yaml, the flows and the automations share."""

POOL = "understudy"
"""The work pool, of type process."""
QUEUES = ("gpu", "cpu", "coordinator")
"""Stages go to the first two. Flows that send them wait in the third: a coordinator holds its worker and its clone."""
STAGE_DEPLOYMENT = "stage/on-worker"
"""What the workers executor sends stages to."""
APPROVAL_DEPLOYMENT = "approve/approval"
"""What asks a person whether a version goes live."""
TAG = "understudy"
"""On every deployment, and so on its runs: what tells ours from other runs of the same server."""
STARTS = 3
"""A run whose process dies is started again in place until it has begun so many times."""
HEARTBEAT_S = 30
"""Between the signs of life of a run. Those started elsewhere than by a deployment take it from flows/api.py."""
BLOCK = "understudy"
"""The webhook block that notifications go to."""
