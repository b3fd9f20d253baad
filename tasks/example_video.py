"""A second of moving picture as a data URL: what a request to a served model looks like."""

import base64
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_WIDTH, _HEIGHT, _RATE_HZ = 64, 48, 10


def data_url() -> str:
    """The video, a bright square that crosses the picture, as data:video/mp4;base64,…"""
    with tempfile.TemporaryDirectory(prefix="understudy-") as folder:
        file = Path(folder, "example.mp4")
        with av.open(str(file), "w") as container:
            stream = container.add_stream("mpeg4", rate=_RATE_HZ)
            stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
            for number in range(_RATE_HZ):
                picture = np.full((_HEIGHT, _WIDTH, 3), 60, np.uint8)
                picture[16:32, 4 * number : 4 * number + 16] = 220
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, _RATE_HZ)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()
