"""`python -m tasks.check_device`: whether the device that the settings name computes; exit code 2, and why, if not.

A process of its own, as one in which CUDA failed once learns nothing new of it. Workers ask it before they take runs
(infra/start-worker), and after a stage failed (`flows.stage`).
"""

import sys

from tasks.errors import UserError
from tasks.inference import device


def main() -> int:
    """Compute something on the device; the exit code."""
    try:
        device()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
