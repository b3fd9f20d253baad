"""How often a study calls chance a difference: `python -m benchmarks.chance` (two minutes).

Differences of two methods that are none, drawn over and over as a seed's own deviation + a clip's + what is left, all
normal; told is the share of studies whose p is below 0.05, by the bootstrap over clips × seeds and by the t-test over
seeds.
"""

import numpy as np
from rich.console import Console
from rich.table import Table

from tasks.study.statistics import Figure, mean_figure, paired

STUDIES, SAMPLES = 400, 1_000
NOISES = {
    # clips, variance of a seed's deviation, of a clip's, of what is left; right answers differ by about 0.3 a clip
    "seeds alone": (500, 3e-3, 0.0, 0.13),
    "seeds and clips": (500, 1e-3, 0.05, 0.13),
    "1,088 clips, as the sample's": (1088, 3e-4, 0.03, 0.25),
    "136 clips, as the sample's": (136, 3e-4, 0.03, 0.25),
    "clips alone": (136, 0.0, 0.2, 0.05),
}


def main() -> None:
    """Print one row a number of seeds and kind of noise."""
    draw = np.random.default_rng(1)
    table = Table("seeds", "what differs", "bootstrap", "t-test")
    for seeds in (3, 5):
        for name, (clips, of_seed, of_clip, rest) in NOISES.items():
            below = np.zeros(2)
            for _ in range(STUDIES):
                values = (
                    draw.normal(0, np.sqrt(of_seed), (seeds, 1))
                    + draw.normal(0, np.sqrt(of_clip), clips)
                    + draw.normal(0, np.sqrt(rest), (seeds, clips))
                )
                nothing = Figure(np.zeros(seeds), np.zeros(SAMPLES))
                found = paired(mean_figure(values, SAMPLES), nothing)
                below += [found.p < 0.05, (found.t_p or 1.0) < 0.05]
            table.add_row(str(seeds), name, *(f"{100 * share:.1f} %" for share in below / STUDIES))
    Console().print(table)


if __name__ == "__main__":
    main()
