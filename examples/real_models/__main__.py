"""Fetches models, and prints where they are.

python -m examples.real_models [minilm gemma3_270m ...]
"""

import importlib
import sys

from . import MODELS
from . import UnavailableError


def main() -> int:
    missing = 0
    for name in sys.argv[1:] or MODELS:
        module = importlib.import_module(f".{name}", __package__)
        try:
            print(f"{name}: {module.preset()}")
        except UnavailableError as error:
            print(f"{name}: {error}")
            missing += 1
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
