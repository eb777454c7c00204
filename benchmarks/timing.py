"""Alternating measurements, and what is said of them."""

import itertools
import time

import numpy as np


def alternate(steps, rounds, seconds, warmup=2):
    """Times functions in turn, so that a slow minute meets all of them.

    Args:
        steps: Functions without arguments, by name.
        rounds: Integer, how often each is timed at most.
        seconds: Number, after which no further round starts (five are made
            in any case).
        warmup: Integer, calls before the first that counts.

    Returns:
        Milliseconds by name, an array of `(rounds,)` each.
    """
    for step in steps.values():
        for _ in range(warmup):
            step()
    times = {name: [] for name in steps}
    start = time.perf_counter()
    for done in itertools.count():
        enough = time.perf_counter() - start > seconds and done >= 5
        if done == rounds or enough:
            break
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - before))
    return {name: np.array(values) for name, values in times.items()}


def ratios(times, reference, key):
    """Medians, and quartiles of the ratio to `reference` within a round.

    Returns:
        A row for each name, which stands under `key`.
    """
    rows = []
    for name, values in times.items():
        quarter, middle, three_quarters = np.percentile(
            values / times[reference], [25, 50, 75]
        )
        rows.append(
            {
                key: name,
                "milliseconds": round(float(np.median(values)), 3),
                "ratio": round(float(middle), 3),
                "quartiles": [
                    round(float(quarter), 3),
                    round(float(three_quarters), 3),
                ],
                "rounds": len(values),
            }
        )
    return rows
