"""The served student, as MLflow loads it: code, safetensors and JSON, no pickle ("models from code").

Input: a table; a row is either a `video`, the bytes as a data URL (data:video/mp4;base64,…) or a path below the
server's UNDERSTUDY_SERVE_ROOT, or a `clip`, numbers 0 to 255 (frames, height, width, 3), with `rate_hz`, its frames
a second. Output: a table with a row for each: for each label head `<head>` (the most probable class) and
`<head>_probs` (class → calibrated probability). A request with a row that cannot be answered is refused as a whole,
with the reason; the server then answers 400, and 500 where the fault is its own.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from tasks.errors import InfrastructureError, UserError
from tasks.serving import Served


class Student(PythonModel):
    """Calibrated class probabilities of videos."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the release folder that was registered with this code."""
        self.served = Served(Path(context.artifacts["release"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each of the input."""
        try:
            return self.served.answer(model_input)
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None
        except InfrastructureError as error:
            raise MlflowException(f"the server failed: {error}", error_code=INTERNAL_ERROR) from None
        except OSError as error:  # its own disk, for example
            raise MlflowException(f"the server failed: {error.strerror}", error_code=INTERNAL_ERROR) from None


mlflow.models.set_model(Student())
