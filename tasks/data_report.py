"""The data report: counts, durations, sample pictures and the quarantine, in one self-contained page."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from tasks.atomic import write_text
from tasks.clips import SPLITS, Clip, Video
from tasks.stores.video import VideoError, nearest, open_video

matplotlib.use("Agg")

_PICTURES = 24
_PICTURE_HEIGHT = 120
_COLOURS = {"train": "#4c78a8", "val": "#f2a541", "test": "#54a24b", "unlabelled": "#b8b8b8"}
_MOST_CLASSES = 40
_MOST_REJECTED = 500
_ONE_LENGTH_S = 1e-3

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Data: {{ name }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; color: #222;
  margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
 table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: left }
 th { border-bottom: 2px solid #999 } td { border-bottom: 1px solid #ddd } td.n { text-align: right }
 figure { display: inline-block; margin: 0 .6rem .8rem 0; vertical-align: top; max-width: 15rem }
 figcaption { font-size: 12px; overflow-wrap: anywhere } img { display: block; max-width: 100% }
</style></head><body>
<h1>{{ name }}</h1>
<p>{{ summary.clips }} clips, {{ "%.1f" | format(summary.seconds / 60) }} minutes,
 in {{ summary.videos }} videos;
 {{ summary.videos_with_sound }} videos with sound, {{ summary.videos_with_detections }} with detections;
 {{ summary.quarantined }} clips in quarantine.</p>
<h2>Splits</h2>
<table><tr><th>split</th><th>clips</th><th>groups</th></tr>
{% for split, part in summary.splits.items() %}
<tr><td>{{ split }}</td><td class="n">{{ part.clips }}</td><td class="n">{{ part.groups }}</td></tr>
{% endfor %}</table>
<h2>Quarantine</h2>
{% if rejected %}<table><tr><th>clip</th><th>video</th><th>file</th><th>row</th><th>reason</th></tr>
{% for line in rejected %}<tr><td>{{ line.clip_id }}</td><td>{{ line.video }}</td><td>{{ line.file }}</td>
<td class="n">{{ line.row }}</td><td>{{ line.reason }}</td></tr>{% endfor %}</table>
{% if more_rejected %}<p>and {{ more_rejected }} more, see quarantine.csv</p>{% endif %}
{% else %}<p>Nothing had to be left out.</p>{% endif %}
{% for title, picture in charts %}<h2>{{ title }}</h2>{{ picture }}{% endfor %}
<h2>Videos</h2>
<table><tr><th>what</th><th>found (number of videos)</th></tr>
{% for what, found in video_facts %}<tr><td>{{ what }}</td><td>{{ found }}</td></tr>{% endfor %}</table>
<h2>Groups</h2>
<table><tr><th>group</th><th>split</th><th>clips</th></tr>
{% for group, split, count in groups %}
<tr><td>{{ group }}</td><td>{{ split }}</td><td class="n">{{ count }}</td></tr>{% endfor %}</table>
{% if more_groups %}<p>and {{ more_groups }} more</p>{% endif %}
<h2>A look at some clips</h2>
{% for caption, source in pictures %}
<figure><img alt="" src="{{ source }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</body></html>
"""


def write_report(
    file: Path,
    name: str,
    summary: Mapping[str, Any],
    clips: Sequence[Clip],
    videos: Mapping[str, Video],
    paths: Mapping[str, Path],
    rejected: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page.

    Args:
        file: where to.
        name: of the data set.
        summary: as in summary.json.
        clips, videos: of the index.
        paths: video → its file, for the pictures.
        rejected: lines of the quarantine: clip_id, video, file, row, reason.
    """
    groups = _groups(clips)
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        name=name,
        summary=summary,
        charts=[(f"Classes: {head}", _class_chart(counts)) for head, counts in summary["classes"].items()]
        + [("Length of the clips", _duration_chart(clips))],
        video_facts=_video_facts(videos.values()),
        groups=groups[:100],
        more_groups=len(groups[100:]),
        pictures=_pictures(clips, videos, paths),
        rejected=rejected[:_MOST_REJECTED],
        more_rejected=len(rejected[_MOST_REJECTED:]),
    )
    write_text(file, text)


def _groups(clips: Iterable[Clip]) -> list[tuple[str, str, int]]:
    counts: dict[tuple[str, str], int] = {}
    for clip in clips:
        counts[clip.group, clip.split] = counts.get((clip.group, clip.split), 0) + 1
    return sorted((group, split, count) for (group, split), count in counts.items())


def _video_facts(videos: Iterable[Video]) -> list[tuple[str, str]]:
    videos = list(videos)
    facts: dict[str, list[str]] = {
        "size": [f"{video.width}×{video.height}" for video in videos],
        "frames a second": [f"{video.rate_hz:.3g}" for video in videos],
        "codec": [video.codec for video in videos],
        "sound, Hz": [str(video.audio_rate_hz or "none") for video in videos],
        "rotated": [f"{video.rotation}°" for video in videos],
        "reader": [video.reader for video in videos],
    }
    return [(what, _most_common(values)) for what, values in facts.items()]


def _most_common(values: Sequence[str], most: int = 12) -> str:
    counts = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    rest = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return ", ".join([f"{value} ({count})" for value, count in counts[:most]] + rest)


def _class_chart(counts: Mapping[str, Mapping[str, int]]) -> Markup:
    """Bars of the clips of each class, the commonest on top, stacked by split."""
    order = sorted(counts, key=lambda label: -sum(counts[label].values()))[:_MOST_CLASSES]
    figure = Figure(figsize=(9, 0.8 + 0.26 * len(order)))
    axes = figure.add_subplot()
    left = np.zeros(len(order))
    for split in SPLITS:
        widths = np.array([counts[label][split] for label in order])
        axes.barh(_plain(order), widths, left=left, color=_COLOURS[split], label=split)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel(
        f"clips ({len(order)} commonest of {len(counts)} classes)" if len(counts) > len(order) else "clips"
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # within, it covers bars
    return _svg(figure)


def _duration_chart(clips: Sequence[Clip]) -> Markup:
    figure = Figure(figsize=(9, 2.6))
    axes = figure.add_subplot()
    splits = [split for split in _COLOURS if any(clip.split == split for clip in clips)]
    lengths = [[clip.duration_s for clip in clips if clip.split == split] for split in splits]
    every = [clip.duration_s for clip in clips]
    # Windows of one length differ by rounding alone, which is too narrow a range to divide.
    room = 0.5 if max(every) - min(every) < _ONE_LENGTH_S else 0.0
    axes.hist(
        lengths,
        bins=30,
        range=(min(every) - room, max(every) + room),
        stacked=True,
        color=[_COLOURS[split] for split in splits],
        label=splits,
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("clips")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _svg(figure)


def _plain(labels: Iterable[str]) -> list[str]:
    """Labels shortened, and with the signs that matplotlib takes for formulas made plain."""
    return [label[:50].replace("$", r"\$") for label in labels]


def _svg(figure: Figure) -> Markup:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "understudy", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = stream.getvalue()
    return Markup(text[text.index("<svg") :])


def _pictures(
    clips: Sequence[Clip], videos: Mapping[str, Video], paths: Mapping[str, Path]
) -> list[tuple[str, str]]:
    """The middle frame of an even choice of clips: (caption, data URI)."""
    chosen = sorted({round(place) for place in np.linspace(0, len(clips) - 1, _PICTURES)})
    pictures = []
    for clip in (clips[place] for place in chosen):
        try:
            with open_video(paths[clip.video], videos[clip.video].reader) as reader:
                middle = (clip.start_s + clip.stop_s) / 2
                frame = next(reader.frames(nearest(reader.times_s, [middle]).tolist()))
        except VideoError:  # what it lacks beyond the moments probed is for extract to say
            continue
        labels = ", ".join(filter(None, clip.labels.values())) or "no label"
        caption = f"{clip.clip_id}: {labels} ({clip.split})"
        pictures.append((caption, _jpeg(frame)))
    return pictures


def _jpeg(frame: np.ndarray) -> str:
    height, width = frame.shape[:2]
    size = max(1, round(width * _PICTURE_HEIGHT / height)), _PICTURE_HEIGHT
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()
