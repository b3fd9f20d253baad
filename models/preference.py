"""Whether validation prefers one training to another, or whether what sets them apart is chance."""

import numpy as np
from scipy.stats import norm, t


def is_preferred(gain: np.ndarray, groups: np.ndarray, rivals: int = 1) -> bool:
    """Whether the first of some candidates must yield to the best of its rivals.

    It stays unless the rival is better by more than chance explains: the one-standard-error rule (Breiman et al.,
    Classification and Regression Trees, 1984, section 3.4.3), with the error of the paired difference. With few groups
    the error itself is uncertain, so Student's t with groups − 1 degrees of freedom takes the normal's place; and the
    best of several rivals is ahead by one error half the time where all are alike. So as many errors are asked for as
    leave the first candidate the odds of 0.84 that one error does, of one rival and many groups (Šidák, JASA 62, 1967).
    Of a single group nothing is known about others, and the first stays.

    Args:
        gain: by how much the rival is better on each validation clip, (clips,).
        groups: a number for each clip, the same within a group (a person, a video), (clips,).
        rivals: how many the best one was picked from.
    """
    known = len(np.unique(groups))
    return known > 1 and bool(gain.mean() > errors_asked_for(known, rivals) * standard_error(gain, groups))


def standard_error(gain: np.ndarray, groups: np.ndarray) -> float:
    """Of the mean of `gain`, (clips,), by the choice of groups; infinite of a single one.

    Clips of one group are not independent: its deviations are added up before they are squared (Liang and Zeger,
    Biometrika 73, 1986). Where every clip is a group it is the usual error of a mean.
    """
    _, which = np.unique(groups, return_inverse=True)
    count = which.max(initial=-1) + 1
    if count < 2:
        return np.inf
    deviations = np.bincount(which, weights=gain - gain.mean())
    return float(np.sqrt(count / (count - 1) * np.square(deviations).sum()) / len(gain))


def errors_asked_for(groups: int, rivals: int) -> float:
    """Standard errors by which the best of `rivals` must be ahead, judged on at least two groups.

    One rival and many groups: 1; four: 1.7; ten: 2.1. One rival and three groups: 1.3; four: 3.2; ten: 5.3.
    """
    return float(t.ppf(norm.cdf(1.0) ** (1 / max(1, rivals)), groups - 1))
