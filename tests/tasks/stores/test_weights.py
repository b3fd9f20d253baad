"""Pretrained weights: from a file, without a network, and from a file that would run code."""

import errno
import io
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

from models.backbones import Backbone
from models.backbones.frames import Frames
from models.backbones.r3d import R3D
from models.backbones.swin3d import Swin3D
from models.weights import Published
from tasks.errors import InfrastructureError, UserError
from tasks.modalities.rgb import Rgb
from tasks.networks import Spec
from tasks.stores import weights
from tasks.views import Jitter, Views

RGB = Rgb(kind="rgb", shards=1, short_side=48, rate_hz=10, quality=98, change_s=None)
VIEWS = Views(
    frames=2,
    size=32,
    per_clip=1,
    zoom=(1.0, 1.0),
    test_zoom=1.0,
    flip=False,
    jitter=Jitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0),
)
FRAMES = Frames(
    kind="frames",
    name="test_resnet",
    pretrained=False,
    temporal="mean",
    normalise="none",
    dropout=0.0,
    drop_path=0.0,
)
R3D_18 = R3D(kind="r3d", name="r3d_18", pretrained=False, normalise="none", dropout=0.0)
SWIN = Swin3D(kind="swin3d", name="swin3d_t", pretrained=False, normalise="none", dropout=0.0, drop_path=0.0)


def spec(backbone: Backbone, pretrained: bool | str) -> Spec:
    return Spec(
        modality="rgb",
        modality_params=RGB,
        views=VIEWS,
        heads={"action": ["cut", "wash"]},
        backbone=backbone.model_copy(update={"pretrained": pretrained}),
    )


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty caches, a proxy that nobody serves, and Hugging Face's client told so, or it asks for a minute."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    # `urlopen` keeps the proxies of its first call for the whole process: neither those of an earlier test
    # here, nor these in a later one.
    urllib.request.install_opener(None)  # type: ignore[arg-type]
    yield
    urllib.request.install_opener(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backbone", "pretrained", "name", "address"),
    [
        (
            SWIN,
            "KINETICS400_V1",
            "torchvision's KINETICS400_V1 of swin3d_t",
            "https://download.pytorch.org/models/swin3d_t-7615ae03.pth",
        ),
        (
            R3D_18,
            "KINETICS400_V1",
            "torchvision's KINETICS400_V1 of r3d_18",
            "https://download.pytorch.org/models/r3d_18-b3b3357e.pth",
        ),
        (
            FRAMES,
            True,
            "timm's weights of test_resnet",
            "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors",
        ),
    ],
)
def test_without_a_network_it_says_which_from_where_and_what_to_do(
    no_network: None, backbone: Backbone, pretrained: bool | str, name: str, address: str
):
    # What refuses the connection may answer later; a hub that was told to be offline will not.
    kind = UserError if backbone is FRAMES else InfrastructureError
    with pytest.raises(kind) as caught:
        spec(backbone, pretrained).new_network()
    said = str(caught.value)
    assert said.startswith(f"{name} cannot be fetched from {address}: ")
    assert "download that file" in said
    assert "`pretrained: path/to/file`" in said


def http(status: int) -> Exception:
    return urllib.error.HTTPError("http://weights", status, "said", None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (http(503), InfrastructureError),
        (http(404), UserError),
        (httpx.ConnectError("refused"), InfrastructureError),
        (ValueError("its hash is another"), UserError),
        (OSError(errno.ENOSPC, "No space left on device"), OSError),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception, kind: type[Exception]):
    def fail() -> Mapping[str, torch.Tensor]:
        raise error

    with pytest.raises(kind):
        weights.fetch(Published("weights", "http://weights", fail))


@pytest.mark.parametrize(("backbone", "pretrained"), [(SWIN, "KINETICS400_V1"), (FRAMES, True)])
def test_an_empty_network_needs_no_weights(no_network: None, backbone: Backbone, pretrained: bool | str):
    assert spec(backbone, pretrained).empty_network() is not None


def test_what_timm_never_published_is_refused():
    with pytest.raises(UserError, match="timm has no weights for 'starnet_s050'"):
        spec(FRAMES.model_copy(update={"name": "starnet_s050"}), True).new_network()


def test_torchvisions_weights_in_the_cache_need_no_network(no_network: None, tmp_path: Path):
    module = spec(R3D_18, False).empty_network().backbone
    cached = tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth"
    cached.parent.mkdir(parents=True)
    torch.save({**module.video.state_dict(), "fc.weight": torch.zeros(400, 512)}, cached)
    same(spec(R3D_18, "KINETICS400_V1").new_network().backbone, module)


def test_timms_weights_in_the_cache_need_no_network(no_network: None, tmp_path: Path):
    module = spec(FRAMES, False).empty_network().backbone
    cache = tmp_path / "models--timm--test_resnet.r160_in1k"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
    classifier = {"fc.weight": torch.zeros(1000, 384), "fc.bias": torch.zeros(1000)}
    state = {name: value.contiguous() for name, value in module.image.state_dict().items()}
    save_file(state | classifier, cache / "snapshots" / ("0" * 40) / "model.safetensors")
    same(spec(FRAMES, True).new_network().backbone, module)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_taken_over(tmp_path: Path, suffix: str):
    module = spec(FRAMES, False).empty_network().backbone
    state = {name: value.contiguous() for name, value in module.image.state_dict().items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    same(spec(FRAMES, str(file)).new_network().backbone, module)


def same(module: torch.nn.Module, other: torch.nn.Module) -> None:
    """Assert that two modules have the same weights."""
    state = module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "weights.pth: there is no such file of pretrained weights"),
        (b"no weights", "weights.pth: pretrained weights: "),
        (pickle.dumps({"stem.0.weight": Harm()}, 2), "weights.pth: pretrained weights: "),
    ],
    ids=["missing", "no weights", "harmful"],
)
def test_what_is_no_file_of_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        spec(R3D_18, "weights.pth").new_network()
    assert not Path("harmed").exists()


def test_a_name_that_is_not_published_is_taken_for_a_file():
    with pytest.raises(UserError, match=r"KINETICS_V9: there is no such file.*\n.*a name that the backbone"):
        spec(SWIN, "KINETICS_V9").new_network()


def test_weights_of_another_network_are_refused(tmp_path: Path):
    whole = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(1)}, whole)
    (tmp_path / "other.pth").write_bytes(whole.getvalue())
    with pytest.raises(UserError, match=r"other\.pth: these weights are not for this depth of R3D"):
        spec(R3D_18, str(tmp_path / "other.pth")).new_network()
