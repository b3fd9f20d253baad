"""Which Prefect server a run talks to."""

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.api import prefect_api
from flows.clone import Clone
from tasks.errors import InfrastructureError


def test_a_configured_server_that_does_not_answer_is_named(project: Clone):
    url = "http://127.0.0.1:9/api"
    unreachable = temporary_settings({PREFECT_API_URL: url})
    with unreachable, pytest.raises(InfrastructureError) as failed, prefect_api(project):
        pass
    assert f"{url} does not answer" in str(failed.value)
    assert "unset PREFECT_API_URL" in str(failed.value)
