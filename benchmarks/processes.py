"""Measurements in a process of their own, whose memory is theirs alone."""

import json
import os
import subprocess
import sys


def measure(module, *arguments, timeout=None, **environment):
    """What `python -m benchmarks.MODULE ARGUMENTS` prints last, as JSON."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | environment,
        )
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
    return json.loads(done.stdout.splitlines()[-1])
