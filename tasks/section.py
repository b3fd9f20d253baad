"""The base of everything that params.yaml is checked against."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of params.yaml: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
