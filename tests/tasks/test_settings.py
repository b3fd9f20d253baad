"""Where things run is read from the environment."""

import pytest

from tasks.errors import UserError
from tasks.settings import settings


@pytest.mark.parametrize(("name", "value"), [("SLOTS", "x"), ("SLOTS", "0"), ("DECODE_TIMEOUT_S", "soon")])
def test_an_impossible_setting_is_the_users_and_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(f"UNDERSTUDY_{name}", value)
    with pytest.raises(UserError, match=f"UNDERSTUDY_{name}={value}: Input should be"):
        settings()
