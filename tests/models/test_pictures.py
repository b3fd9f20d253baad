"""Pictures before the first layer: what has fewer channels than rgb, and steps given back to frames."""

import torch

from models.pictures import in_three_channels
from models.temporal import of_frames


def test_flow_gets_a_channel_of_zeros_and_sound_is_grey():
    x = torch.rand(2, 3, 3, 4, 5)
    assert torch.equal(in_three_channels(x), x)
    flow = in_three_channels(x[:, :, :2])
    assert torch.equal(flow[:, :, :2], x[:, :, :2])
    assert flow.shape == x.shape
    assert not flow[:, :, 2].any()
    sound = in_three_channels(x[:, :, :1])
    assert all(torch.equal(sound[:, :, channel], x[:, :, 0]) for channel in range(3))


def test_frames_are_given_the_step_they_fall_into():
    def given(steps: int, frames: int, stride: int) -> list[float]:
        return of_frames(torch.arange(float(steps))[None, :, None], frames, stride).flatten().tolist()

    assert given(2, 4, 2) == [0, 0, 1, 1]
    assert given(3, 5, 2) == [0, 0, 1, 1, 2]  # an odd frame is a pair of its own
    assert given(2, 12, 8) == [0] * 8 + [1] * 4
    assert given(3, 3, 1) == [0, 1, 2]
