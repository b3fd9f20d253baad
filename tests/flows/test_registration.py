"""Making up for a release that the registry of this machine does not have."""

import json
from pathlib import Path

import pytest

from flows.clone import Clone
from flows.registration import ensure_registered
from tasks.errors import InfrastructureError

ROOT = Path(__file__).parents[2]


def test_a_server_that_is_down_is_told_with_cause_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = tmp_path / "artifacts" / "release"
    release.mkdir(parents=True)
    (release / "release.json").write_text(json.dumps({"files": {}}))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InfrastructureError) as failed:
        ensure_registered(Clone(tmp_path))
    message = str(failed.value)
    assert "registry: MLflow at http://127.0.0.1:9 did not register the release" in message
    assert "Connection refused" in message
    assert "run `dvc repro register` again" in message
