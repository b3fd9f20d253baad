"""Sound as log-mel spectrograms: for every frame of a view a window of sound centred on it."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt

from tasks.clips import Clip
from tasks.modalities.modality import Modality, RawVideo, Span, merge
from tasks.shards import Row, Rows
from tasks.stores.video import read_audio
from tasks.views import View

_FLOOR_DB = -100.0


class Audio(Modality):
    """Log-mel spectrograms in dB. Rendered: (frames, 1, mels, columns), standardised over the view."""

    kind: Literal["audio"]
    rate_hz: PositiveInt = Field(description="Samples a second; every track is resampled to it.")
    n_fft: PositiveInt = Field(description="Points of the Fourier transform.")
    window: PositiveInt = Field(description="Samples of a short-time window.")
    hop: PositiveInt = Field(description="Samples between two columns.")
    mels: PositiveInt = Field(description="Mel bands between 0 Hz and half the rate.")
    window_s: PositiveFloat = Field(description="Seconds of sound that go with one frame, centred on it.")

    @property
    def channels(self) -> int:
        """Log-mel power."""
        return 1

    @property
    def _column_s(self) -> float:
        return self.hop / self.rate_hz

    def extract(self, raw: RawVideo, spans: Sequence[Span]) -> Iterator[Row]:
        """One row a span (widened by half a window): float16 (columns, mels), `time_s` that of its first column."""
        if not raw.video.audio_rate_hz:
            return
        track = read_audio(raw.path, self.rate_hz, raw.video.duration_s)
        if track is None:
            return
        samples, begin_s = track
        margin = self.window_s / 2
        for start_s, stop_s in merge([(start - margin, stop + margin) for start, stop in spans]):
            first = max(0, round((start_s - begin_s) * self.rate_hz))
            last = min(len(samples), round((stop_s - begin_s) * self.rate_hz))
            if last > first:
                levels = self.log_mel(samples[first:last])
                yield Row(begin_s + first / self.rate_hz, raw.aspect, levels.astype(np.float16).tobytes())

    def log_mel(self, samples: np.ndarray) -> np.ndarray:
        """Log-mel power in dB, float32 (columns, mels), of mono `samples` in -1..1; column k is centred on k hops."""
        needed = max(0, self.n_fft - len(samples))
        signal = torch.from_numpy(np.pad(samples, (0, needed)))
        window = torch.hann_window(self.window)
        spectrum = torch.stft(
            signal,
            self.n_fft,
            self.hop,
            self.window,
            window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().square() / window.square().sum()
        bands = torch.from_numpy(mel_filters(self.rate_hz, self.n_fft, self.mels)) @ power
        return (10 * torch.log10(bands.clamp_min(10 ** (_FLOOR_DB / 10)))).T.numpy()

    def covers(self, rows: Rows | None, clip: Clip) -> bool:
        """Whether the sound track reaches into `clip`."""
        return rows is not None and any(
            start_s < clip.stop_s and start_s + len(levels) * self._column_s > clip.start_s
            for start_s, levels in self._pieces(rows)
        )

    def _pieces(self, rows: Rows) -> Iterator[tuple[float, np.ndarray]]:
        for number, start_s in enumerate(rows.times_s):
            yield float(start_s), np.frombuffer(rows.payload(number), np.float16).reshape(-1, self.mels)

    @property
    def _columns(self) -> int:
        """As many as the window needs: 1.116 s at 16 kHz are 224 columns of 80 samples, as in the paper."""
        return -(-round(self.window_s * self.rate_hz) // self.hop)

    def shape(self, frames: int, size: int) -> tuple[int, ...]:
        """(frames, 1, mels, columns); `size` plays no part."""
        return frames, 1, self.mels, self._columns

    def render(self, rows: Rows, view: View, size: int) -> np.ndarray:
        """A window a frame, float32 (frames, 1, mels, columns); silence where the track does not reach."""
        columns = self._columns
        frames = np.full((len(view.times_s), columns, self.mels), _FLOOR_DB, np.float32)
        pieces = list(self._pieces(rows))
        for place, time_s in enumerate(view.times_s):
            for start_s, levels in pieces:
                first = round((time_s - start_s) / self._column_s) - columns // 2
                begin, end = max(0, first), min(len(levels), first + columns)
                if end > begin:
                    frames[place, begin - first : end - first] = levels[begin:end]
        heard = frames[frames > _FLOOR_DB]
        if heard.size:
            frames = np.maximum(frames, heard.min())
            frames = (frames - frames.mean()) / (frames.std() + 1e-3)
        else:
            frames[:] = 0
        return np.ascontiguousarray(frames.transpose(0, 2, 1)[:, None])


@cache
def mel_filters(rate_hz: int, n_fft: int, mels: int) -> np.ndarray:
    """Triangular mel filters, float32 (mels, n_fft // 2 + 1), HTK scale: mel = 2595 log10(1 + f / 700)."""
    highest = 2595 * np.log10(1 + rate_hz / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, mels + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate_hz / 2, n_fft // 2 + 1)
    rising = (frequencies - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - frequencies) / np.diff(corners)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)
