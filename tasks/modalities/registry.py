"""The union of all modalities, by their `kind`."""

from typing import Annotated

from pydantic import Field

from tasks.modalities.audio import Audio
from tasks.modalities.detections import Detections
from tasks.modalities.flow import Flow
from tasks.modalities.rgb import Rgb

AnyModality = Annotated[Rgb | Flow | Detections | Audio, Field(discriminator="kind")]
