"""Which numbers of views are among larger ones, so that networks look at each view once."""

from collections.abc import Sequence
from fractions import Fraction


def nesting(counts: Sequence[int]) -> dict[int, list[int]]:
    """Number of interleaved clips to compute → the numbers whose views are among them, itself included.

    The frames of clip n of N are set off by (n + ½)/N of a segment (`tasks.views`), so the views of N are
    among those of an odd multiple of N.
    """
    sources: dict[int, list[int]] = {}
    for count in sorted(set(counts), reverse=True):
        source = next((s for s in sources if s % count == 0 and s // count % 2 == 1), count)
        sources.setdefault(source, []).append(count)
    return sources


def view_places(source: int, source_crops: int, clips: int, crops: int) -> list[int]:
    """Which of the source × source_crops views are the clips × crops views, crops varying fastest.

    Raises:
        ValueError: they are not among them.
    """
    if crops not in (1, source_crops) or source_crops % 2 == 0:
        raise ValueError(f"{crops} crop(s) are not among {source_crops}")
    places = []
    for number in range(clips):
        place = Fraction(2 * number + 1, 2 * clips) * source - Fraction(1, 2)
        if place.denominator != 1:
            raise ValueError(f"the views of {clips} clip(s) are not among those of {source}")
        chosen = [source_crops // 2] if crops == 1 else range(crops)
        places += [int(place) * source_crops + crop for crop in chosen]
    return places
