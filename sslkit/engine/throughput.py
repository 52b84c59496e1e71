"""Throughput of the training steps of one process."""

import time

COLD_STEPS = 3  # of a process, which its rate leaves out


class Throughput:
    """Measure the speed of training steps, and the share of it spent waiting for data."""

    def __init__(self) -> None:
        self.samples = self.cold_samples = self.steps = 0
        self.seconds = self.cold_seconds = self.waited = 0.0
        self._step_start = self._batch_arrival = time.perf_counter()

    def start_step(self) -> None:
        """Record that a step begins: from here on it waits for its batch."""
        self._step_start = time.perf_counter()

    def batch_arrived(self) -> None:
        """Record that the batch of the step is there."""
        self._batch_arrival = time.perf_counter()

    def finish_step(self, samples: int) -> None:
        """Count a step of `samples` samples."""
        self.count_step(samples, time.perf_counter() - self._step_start, self._batch_arrival - self._step_start)

    def count_step(self, samples: int, seconds: float, waited: float) -> None:
        """Count a step; the first few of a process, which warm up, apart from the others."""
        self.steps += 1
        if self.steps > COLD_STEPS:
            self.samples += samples
            self.seconds += seconds
            self.waited += waited
        else:
            self.cold_samples += samples
            self.cold_seconds += seconds

    @property
    def rate(self) -> float:
        """Return samples per second of the warm steps; of all steps while none is warm; 0 before the first."""
        if self.seconds:
            return self.samples / self.seconds
        return self.cold_samples / self.cold_seconds if self.cold_seconds else 0.0

    @property
    def seconds_per_step(self) -> float:
        """Return the seconds of a warm step; 0 while there is none."""
        return self.seconds / (self.steps - COLD_STEPS) if self.seconds else 0.0
