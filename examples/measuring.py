"""What training costs, for the notebooks: time of a step, and memory."""

import ctypes
import gc
import sys
import threading
import time

import keras
import numpy as np
import psutil


class Cost(keras.callbacks.Callback):
    """Measures a `fit` of two epochs or more, in all but the first.

    The first epoch compiles, and is left out.

    Attributes:
        step: Float, seconds of a step, in the quickest epoch: of all cores
            together, whatever else the machine does; on a GPU by the clock.
        memory: Integer, bytes: how much the process grows while it trains
            (activations and gradients), with the optimizer's state added.
            `None` on a GPU, whose memory the process does not show.
    """

    def __init__(self):
        super().__init__()
        self.step = self.memory = self._growth = None
        self._on_cpu = on_cpu()
        self._clock = time.process_time if self._on_cpu else time.perf_counter

    def on_epoch_begin(self, epoch, logs=None):
        self._start = self._clock()
        if epoch > 0:
            self._growth = Growth()

    def on_train_batch_end(self, batch, logs=None):
        self._steps = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            return
        step = (self._clock() - self._start) / self._steps
        self.step = min(step, self.step or step)
        memory = self._growth.stop()
        if not self._on_cpu:
            return
        for variable in self.model.optimizer.variables:
            memory += 4 * int(np.prod(variable.shape))
        self.memory = max(memory, self.memory or 0)


def on_cpu():
    """Whether Keras computes on processors alone."""
    if keras.backend.backend() == "torch":
        import torch

        return not torch.cuda.is_available()
    return all("cpu" in name for name in keras.distribution.list_devices())


class Growth:
    """The largest growth of this process's memory, watched by a thread."""

    def __init__(self):
        gc.collect()
        if sys.platform == "linux":
            # What was freed goes back to the system.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._process = psutil.Process()
        self._before = self._largest = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        while not self._done.wait(0.01):
            now = self._process.memory_info().rss
            self._largest = max(self._largest, now)

    def stop(self):
        """Ends the watch; returns bytes."""
        self._done.set()
        self._thread.join()
        return self._largest - self._before
