"""How ranks wait: GPUs give each other up after half an hour, everything else waits as long as it takes."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed

from tasks import ranks


@pytest.mark.parametrize(
    ("there", "own"),
    [("cuda:0", ("nccl", timedelta(minutes=30))), ("cpu", ("gloo", timedelta(days=365)))],
)
def test_gpus_alone_give_each_other_up(there: str, own: Any, monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, timeout: made.append((backend, timeout))
    )
    monkeypatch.setattr(
        torch.distributed, "new_group", lambda backend, timeout: made.append((backend, timeout)) or "by CPU"
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "barrier", waited.append)
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with ranks.joined(torch.device(there)):
        ranks.wait_for_all()
    assert made == [own, ("gloo", timedelta(days=365))]
    assert waited == ["by CPU"]
    assert ranks.on_cpu() is None
