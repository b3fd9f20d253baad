"""Where things run is read from the environment."""

import pytest
import torch

from tasks.errors import UserError
from tasks.inference import device
from tasks.settings import settings


@pytest.mark.parametrize(("name", "value"), [("SLOTS", "x"), ("SLOTS", "0"), ("DECODE_TIMEOUT_S", "soon")])
def test_an_impossible_setting_is_the_users_and_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(f"UNDERSTUDY_{name}", value)
    with pytest.raises(UserError, match=f"UNDERSTUDY_{name}={value}: Input should be"):
        settings()


def test_a_device_that_torch_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "gpu")
    with pytest.raises(UserError, match=r"UNDERSTUDY_DEVICE is 'gpu': .*\n.*auto or cpu"):
        device()
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cpu")
    assert device().type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDERSTUDY_DEVICE", "cuda")
    with pytest.raises(UserError, match="UNDERSTUDY_DEVICE is 'cuda': "):
        device()
