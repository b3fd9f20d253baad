"""What the prior of a fitted temperature buys on few clips: `python -m benchmarks.prior` (a minute).

Drawn 8-class networks whose logits are right over a temperature T; it is fitted on n clips, 40 times over, and the NLL
of 20,000 others is told above that of T itself. Without the prior: the same clips 1,000 times over, so that it weighs
nothing.
"""

import torch
from rich.console import Console
from rich.table import Table

from models.calibration import apply, fit_temperature, nll

CLASSES, SCALE, NEW, DRAWS = 8, 2.5, 20_000, 40
TEMPERATURES, COUNTS, MANY = (0.3, 1.0, 3.0), (6, 12, 24, 60), 1_000


def drawn(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Calibrated logits (count, classes) and labels (count,)."""
    logits = SCALE * torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def main() -> None:
    """Print one row a temperature and number of clips."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    table = Table("T", "clips", "NLL above the best, no prior", "with it")
    logits, labels = drawn(NEW, generator)
    for temperature in TEMPERATURES:
        best = nll(logits, labels)
        for count in COUNTS:
            above = torch.zeros(2)
            for _ in range(DRAWS):
                few, truth = drawn(count, generator)
                few = few * temperature
                fitted = fit_temperature(few.repeat(MANY, 1), truth.repeat(MANY)), fit_temperature(few, truth)
                above += (
                    torch.tensor([nll(apply(logits * temperature, t), labels) - best for t in fitted]) / DRAWS
                )
            table.add_row(f"{temperature:g}", str(count), *(f"{value:.3f}" for value in above.tolist()))
    Console().print(table)


if __name__ == "__main__":
    main()
