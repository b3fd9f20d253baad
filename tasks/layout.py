"""Where each stage's files lie inside a workspace. The one place that knows the folder names of dvc.yaml."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folders of one clone, below its root."""

    root: Path

    @property
    def params(self) -> Path:
        """params.yaml"""
        return self.root / "params.yaml"

    @property
    def presets(self) -> Path:
        """Params of the published data sets, one file each."""
        return self.root / "infra" / "presets"

    @property
    def raw(self) -> Path:
        """What the user brought: videos/, annotations.csv, detections/ (tracked by data.dvc)."""
        return self.root / "data" / "raw"

    @property
    def index(self) -> Path:
        """Output of `ingest`: clips.csv, videos.csv, quarantine.csv, summary.json."""
        return self.root / "data" / "index"

    @property
    def data_report(self) -> Path:
        """Output of `ingest` for people: index.html with pictures."""
        return self.root / "reports" / "data"

    def modality(self, name: str) -> Path:
        """Output of `extract@<name>`."""
        return self.root / "data" / "modalities" / name

    def teacher(self, name: str) -> Path:
        """Output of `train_teacher@<name>`."""
        return self.root / "artifacts" / "teachers" / name

    def fused(self, name: str) -> Path:
        """Output of `fuse@<name>`."""
        return self.root / "artifacts" / "fused" / name

    @property
    def teachings(self) -> Path:
        """The bank of teachings: one folder a teacher."""
        return self.root / "artifacts" / "teachings"

    def specialists(self, name: str) -> Path:
        """Output of `specialise@<name>`: a bank of teachings like that of the teachers, apart from it so that only
        students who learn from specialists wait for them.
        """
        return self.root / "artifacts" / "specialists" / name

    def student(self, name: str) -> Path:
        """Output of `distill@<name>`."""
        return self.root / "artifacts" / "students" / name

    @property
    def reports(self) -> Path:
        """Outputs of `evaluate`: comparison.json, metrics.json, index.html, plots/."""
        return self.root / "reports"

    @property
    def gate(self) -> Path:
        """What the gate last said of a registered version; no stage's output, as the registry decides it too."""
        return self.root / "reports" / "gate"

    @property
    def release(self) -> Path:
        """Output of `register`: the packaged student and its model card."""
        return self.root / "artifacts" / "release"
