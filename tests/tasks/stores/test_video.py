"""Videos are read frame by frame at the right times, whatever the codec; bad ones say why."""

import errno
import os
import signal
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tasks.errors import InfrastructureError
from tasks.stores import aside
from tasks.stores import probe as probing
from tasks.stores.aside import Aside, DecodingStopped
from tasks.stores.probe import Prober, probe
from tasks.stores.video import VideoError, nearest, open_video, read_audio


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_frames_by_number_and_their_times(films, one_second: Path, reader):
    with open_video(one_second, reader) as video:
        assert (video.width, video.height) == (64, 48)
        np.testing.assert_allclose(video.times_s, np.arange(10) / 10, atol=1e-6)
        assert [films.number(frame) for frame in video.frames([0, 3, 3, 4, 9])] == [0, 3, 3, 4, 9]
        assert [films.number(frame) for frame in video.frames([2, 7])] == [2, 7]  # again, from further back


def test_both_readers_give_the_same_pixels(films, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), dtype=np.uint8)
    path = films.write(tmp_path / "noise.mp4", noise, options={"bf": "2", "g": "8"})
    with open_video(path, "decord") as one, open_video(path, "pyav") as other:
        numbers = [0, 1, 9, 17, 29]
        for ours, theirs in zip(one.frames(numbers), other.frames(numbers), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open.mp4", "libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=2:scenecut=0"}),
        ("open.mkv", "libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=2:scenecut=0"}),
        ("default.mp4", "libx265", {"x265-params": "keyint=12:min-keyint=12:scenecut=0:log-level=none"}),
        ("mpeg2.mp4", "mpeg2video", {"bf": "2", "g": "12"}),
        ("mpeg4.mp4", "mpeg4", {"bf": "2", "g": "12"}),
    ],
)
def test_open_groups_go_to_pyav_as_decord_counts_them_wrongly(films, tmp_path: Path, name, codec, options):
    """Frames shown before the keyframe that they follow in the file: x265 makes them unless told otherwise."""
    frames = [np.full((48, 64, 3), 16 + 7 * number, np.uint8) for number in range(30)]
    path = films.write(tmp_path / name, frames, codec=codec, options=options)
    found = probe(path, [], timeout_s=60)
    assert found.reader == "pyav"
    with open_video(path, found.reader) as video:
        for number in (25, 13, 11, 27, 0):  # sought back and forth
            (frame,) = video.frames([number])
            assert abs(float(frame.mean()) - 16 - 7 * number) < 5


def test_closed_groups_stay_with_decord(films, tmp_path: Path):
    path = films.write(tmp_path / "closed.mp4", films.grey(12) * 4, options={"bf": "2", "g": "12"})
    assert probe(path, [], timeout_s=60).reader == "decord"


def test_av1_goes_to_pyav(films, tmp_path: Path):
    path = films.write(tmp_path / "av1.mp4", films.grey(10), codec="libsvtav1")
    found = probe(path, [0.0, 1.0], timeout_s=60)
    assert found.reader == "pyav"
    with open_video(path, found.reader) as video:
        assert [films.number(frame) for frame in video.frames([0, 5, 9])] == [0, 5, 9]


def test_rotated_video_is_shown_upright(films, tmp_path: Path):
    red_left = np.zeros((48, 64, 3), np.uint8)
    red_left[:, :32, 0], red_left[:, 32:, 2] = 255, 255
    path = films.write(tmp_path / "phone.mp4", [red_left] * 5)
    films.turn_upright(path)
    found = probe(path, [0.0], timeout_s=60)
    assert (found.width, found.height, found.rotation, found.reader) == (48, 64, 270, "pyav")
    with open_video(path, found.reader) as video:
        frame = next(video.frames([0]))
    assert frame.shape == (64, 48, 3)
    assert frame[10, 24, 0] > 200
    assert frame[10, 24, 2] < 60
    assert frame[54, 24, 2] > 200
    assert frame[54, 24, 0] < 60


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx-vp9"), (".avi", "mpeg4")]
)
def test_other_containers_and_codecs(films, tmp_path: Path, suffix: str, codec: str):
    path = films.write(tmp_path / f"video{suffix}", films.grey(10), codec=codec)
    found = probe(path, [0.0, 1.0], timeout_s=60)
    assert found.duration_s == pytest.approx(1.0, abs=0.02)
    with open_video(path, found.reader) as video:
        assert [films.number(frame) for frame in video.frames([1, 8])] == [1, 8]


def test_avi_without_presentation_stamps_is_counted(films, tmp_path: Path):
    path = films.write(tmp_path / "b.avi", films.grey(20), options={"bf": "2"})
    found = probe(path, [0.0, 1.9], timeout_s=60)
    with open_video(path, found.reader) as video:
        assert len(video.times_s) == 20
        assert [films.number(frame) for frame in video.frames([0, 7, 19])] == [0, 7, 19]


@pytest.mark.parametrize("gop", ["5", "250"])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".ts", "libx264"),
        (".mts", "libx264"),
        (".mpg", "mpeg2video"),
        (".mkv", "libx264"),
        (".mp4", "libx264"),
    ],
)
def test_frames_shown_out_of_the_order_of_decoding_are_found(
    films, tmp_path: Path, suffix: str, codec: str, gop: str
):
    """MPEG's own containers are sought by the stamp of decoding, which lies before that of showing."""
    path = films.write(tmp_path / f"b{suffix}", films.grey(20), 25, codec, options={"bf": "2", "g": gop})
    found = probe(path, [0.0, 0.4], timeout_s=60)
    assert found.broken_s == ()
    for reader in {found.reader, "pyav"}:
        with open_video(path, reader) as video:
            assert len(video.times_s) == 20
            assert [films.number(frame) for frame in video.frames([0, 1, 6, 12, 19])] == [0, 1, 6, 12, 19]


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_a_frame_far_into_a_video_costs_no_more_than_from_the_keyframe_before_it(
    films, tmp_path: Path, suffix: str
):
    path = films.write(tmp_path / f"long{suffix}", films.grey(20) * 10, 25, options={"bf": "2", "g": "10"})
    with open_video(path, "pyav") as video:
        decoded = []

        def counted(frames):
            for frame in frames:
                decoded.append(frame.pts)
                yield frame

        seek = video._seek
        video._decoder = counted(video._decoder)
        video._seek = lambda stamp: (seek(stamp), setattr(video, "_decoder", counted(video._decoder)))
        assert [films.number(frame) for frame in video.frames([117, 118, 175])] == [17, 18, 15]
    assert len(decoded) < 30


def test_nearest_frame():
    times_s = np.array([0.0, 0.1, 0.2])
    assert nearest(times_s, [-1, 0.04, 0.06, 0.2, 9]).tolist() == [0, 0, 1, 2, 2]
    assert nearest(np.array([0.0]), [0.0, 5.0]).tolist() == [0, 0]


def test_probe_tells_what_the_file_is(one_second: Path):
    found = probe(one_second, [0.0, 1.0], timeout_s=60)
    assert (found.codec, found.width, found.height, found.rotation) == ("h264", 64, 48, 0)
    assert (found.reader, found.audio_rate_hz, found.broken_s) == ("decord", 16000, ())
    assert found.rate_hz == pytest.approx(10)
    assert found.duration_s == pytest.approx(1.0, abs=1e-3)
    assert not found.truncated


def test_truncated_video_promises_more_than_it_holds(films, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    path = films.write(tmp_path / "noise.mkv", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = probe(path, [0.0], timeout_s=60)
    assert found.duration_s < 3
    mp4 = films.write(tmp_path / "noise.mp4", noise)  # has its index at the end
    mp4.write_bytes(mp4.read_bytes()[: len(whole) // 2])
    with pytest.raises(VideoError, match="not a video that FFmpeg can open"):
        probe(mp4, [0.0], timeout_s=60)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"These are my notes of the recording.\n" * 40, "not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\none.ts\n#EXT-X-ENDLIST\n", "not a video"),
        (b"ffconcat version 1.0\nfile one.mp4\n", "not a video"),
        (os.urandom(4096), "not a video|cannot be|no video track|no whole frame"),
    ],
    ids=["empty", "text", "playlist", "concat", "noise"],
)
def test_what_is_no_video_says_so(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=reason):
        probe(path, [0.0], timeout_s=60)


def test_sound_alone_is_no_video(films, tmp_path: Path, one_second: Path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(films.tone(0.5), format="fltp", layout="mono")
        block.sample_rate, block.pts = 16000, 0
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video track"):
        probe(path, [], timeout_s=60)


def test_a_prober_outlives_a_hang_and_a_death(one_second: Path):
    with Prober(timeout_s=5) as prober:
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            assert prober.probe(one_second, []).codec == "h264"
            worker = prober._process
            assert worker is not None
            os.kill(worker.pid, blow)
            assert (
                prober.probe(one_second, []).reader == "pyav"
            )  # asked again, of a new process, without decord
            assert worker.poll() is not None


@pytest.mark.parametrize(
    ("blow", "error", "reason"),
    [
        (signal.SIGKILL, InfrastructureError, "was killed"),
        (signal.SIGSEGV, DecodingStopped, "crashed on it .exit status -11"),
    ],
)
def test_a_prober_that_is_killed_is_no_fault_of_the_video(one_second, monkeypatch, blow, error, reason):
    with Prober(timeout_s=20) as prober:
        started = prober._started

        def struck():
            process = started()
            os.kill(process.pid, blow)
            return process

        monkeypatch.setattr(prober, "_started", struck)
        with pytest.raises(error, match=reason):
            prober.probe(one_second, [])


def test_a_process_that_cannot_be_started_is_no_fault_of_the_video(monkeypatch):
    with Aside("tasks.nowhere", timeout_s=20) as process:
        with pytest.raises(
            InfrastructureError, match=r"does not start .*`python -m tasks\.nowhere` says why"
        ):
            process.ask({})
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(InfrastructureError, match="cannot be started: No such file"):
            process.ask({})


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (MemoryError(), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (OSError(errno.EINVAL, "odd"), True),
        (ValueError("odd"), True),
    ],
)
def test_what_the_machine_may_be_at_fault_for_is_told_apart(error: Exception, kept: bool):
    def fails(_):
        raise error

    assert list(aside._caught(fails, {})) == ["error" if kept else "passing"]


def test_a_fault_that_passes_is_not_the_video_s(one_second: Path, monkeypatch):
    with Prober(timeout_s=20) as prober:
        monkeypatch.setattr(prober, "_line", lambda *_: b'{"passing": "cannot be read: memory runs out"}')
        with pytest.raises(DecodingStopped, match="memory runs out"):
            prober.probe(one_second, [])


def test_decoders_are_told_no_secrets(one_second, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "UNDERSTUDY_WEBHOOK_URL"):
        monkeypatch.setenv(name, "https://hush-hush")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Prober(timeout_s=60) as prober:
        prober.probe(one_second, [])
        told = Path(f"/proc/{prober._process.pid}/environ").read_bytes()
    assert b"hush-hush" not in told
    assert b"PATH=" in told
    assert b"OMP_NUM_THREADS=1" in told


def test_vast_frames_are_refused(films, tmp_path: Path):
    path = films.write(tmp_path / "wide.mp4", films.grey(2, (8208, 16)))
    with pytest.raises(VideoError, match="has frames of 8208 x 16 pixels; sides of more than 8192"):
        probing.examine(path, [], try_decord=False)


def test_what_takes_too_long_is_given_up(one_second: Path):
    with Prober(timeout_s=0.001) as prober, pytest.raises(DecodingStopped, match=r"longer than 0\.001 s"):
        prober.probe(one_second, [])


def test_sound_is_mono_and_on_the_picture_s_clock(one_second: Path):
    track = read_audio(one_second, 8000, 1.0)
    assert track is not None
    samples, start_s = track
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(start_s) < 0.1
    assert len(samples) / 8000 + start_s == pytest.approx(1.0, abs=0.15)
    middle = samples[2000:6000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) * 8000 / len(middle) == pytest.approx(440, abs=4)


def test_stereo_becomes_the_mean_of_its_channels(films, tmp_path: Path):
    left = films.tone(1.0)
    path = films.write(tmp_path / "stereo.mp4", films.grey(10), sound=np.concatenate([left, 0 * left]))
    track = read_audio(path, 16000, 1.0)
    assert track is not None
    assert np.abs(track[0][4000:12000]).max() == pytest.approx(0.25, abs=0.03)


def test_no_sound_and_silence_count_as_none(films, tmp_path: Path):
    mute = films.write(tmp_path / "mute.mp4", films.grey(5))
    silent = films.write(tmp_path / "silent.mp4", films.grey(5), sound=0 * films.tone(0.5))
    for path in (mute, silent):
        assert read_audio(path, 16000, 0.5) is None
        assert probe(path, [], timeout_s=60).audio_rate_hz == 0


def clicks(path: Path, stamps_s: Iterable[float], click: int) -> Path:
    """A video of two seconds with uncompressed sound of 0.1 s a block at these stamps, a click in one of them."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        for number, stamp_s in enumerate(stamps_s):
            samples = np.zeros((1, 800), np.int16)
            samples[0, 0] = 20000 if number == click else 0
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            block.sample_rate, block.time_base, block.pts = 8000, Fraction(1, 8000), round(stamp_s * 8000)
            container.mux(sound.encode(block))
    return path


@pytest.mark.parametrize("gap_s", [0.0, 0.002, 0.04, 0.06])
def test_sound_stays_in_step_over_many_small_gaps(tmp_path: Path, gap_s: float):
    """As of packets that were lost, or a recorder whose clocks differ."""
    stamps_s = np.arange(100) * (0.1 + gap_s)
    track = read_audio(clicks(tmp_path / "gaps.mkv", stamps_s, 99), 8000, 20.0)
    assert track is not None
    samples, start_s = track
    assert start_s + np.argmax(np.abs(samples)) / 8000 == pytest.approx(stamps_s[99], abs=0.06)


@pytest.mark.parametrize("false_s", [3e6, -3e6])
def test_a_false_stamp_of_sound_is_left_out(tmp_path: Path, false_s: float):
    """Filled with silence up to it, the track would take all memory."""
    stamps_s = [*np.arange(10) * 0.1, false_s]
    if false_s < 0:
        stamps_s = sorted(stamps_s)
    track = read_audio(clicks(tmp_path / "false.mkv", stamps_s, 5), 8000, 2.0)
    assert track is not None
    assert len(track[0]) / 8000 == pytest.approx(1.0, abs=0.15)


def test_only_an_even_choice_of_many_moments_is_decoded(one_second: Path):
    found = probing.examine(one_second, list(np.linspace(0, 1, 500)), try_decord=True)
    assert found.broken_s == ()
