"""The served student, as MLflow loads it: code, safetensors and JSON, no pickle ("models from code").

Input: a table with a column `video`, each a path that the server can read or the bytes themselves as a data
URL (data:video/mp4;base64,…). Output: a table with one row a video: `video`, `error` (null where all went
well) and, for each label head, `<head>` (the most probable class) and `<head>_probs` (class → calibrated
probability).
"""

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from tasks.networks import Committee
from tasks.predict import Prediction, predict


class Student(PythonModel):
    """Calibrated class probabilities of videos."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the release folder that was registered with this code."""
        self.committee = Committee.load(Path(context.artifacts["release"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each video of the column `video`; a bad one gets an error and the others go on."""
        return pd.DataFrame([self._row(video) for video in model_input["video"]])

    def _row(self, video: str) -> dict[str, Any]:
        found = self._predict(video)
        row: dict[str, Any] = {"video": found.video, "error": found.error}
        for head in self.committee.spec.heads:
            ranked = found.heads.get(head, [])
            row[head] = ranked[0][0] if ranked else None
            row[f"{head}_probs"] = dict(ranked)
        return row

    def _predict(self, video: str) -> Prediction:
        if not video.startswith("data:"):
            return predict([Path(video)], self.committee)[0]
        with tempfile.NamedTemporaryFile(prefix="understudy-", suffix=".video") as file:
            try:
                file.write(base64.b64decode(video.partition(";base64,")[2], validate=True))
            except binascii.Error as error:
                return Prediction("data:", error=f"is not base64 ({error})")
            file.flush()
            found = predict([Path(file.name)], self.committee)[0]
            return Prediction("data:", found.start_s, found.stop_s, found.heads, found.error)


mlflow.models.set_model(Student())
