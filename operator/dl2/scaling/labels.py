"""Whether labels tell how fast jobs train, judged by the jobs that carry them.

Where a job comes to a shape that others of its label have measured, it trains as fast as they did, if the label names
what is trained; if it names a user, or all jobs alike, it does not. Which of both explains better what was measured is
added up over the jobs (sequential probability ratio test; Wald, 1945), and what is found of some labels is likely of the
others, too. One job counts once, and not without bounds, so that a few that lie or crawl take no label away.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field

from dl2.scaling.cells import Cell, Kind, Name
from dl2.scaling.interface import Scale

_ALIKE, _APART = 0.15, 1.0  # deviations of the log of the speed among jobs of one model, and of any
_CREDIT = 4.0  # that a label has in advance
_LEAST, _MOST = -3.0, 1.5  # what one job can say, and one label about the others
_OTHERS = 4.0  # what all others together can say
_MOST_JOBS, _MOST_FALLEN = 256, 4096


@dataclass(slots=True)
class _Label:
    """`jobs`: what each has measured by itself, the last to measure at the end."""

    evidence: float = 0.0
    jobs: dict[Name, Kind] = field(default_factory=dict)
    heard: set[Name] = field(default_factory=set)

    def forget_oldest(self) -> None:
        oldest = next(iter(self.jobs))
        self.heard.discard(oldest)
        del self.jobs[oldest]


class Labels:
    """What is thought of every label, and what its jobs have measured. One that has fallen stays fallen: its jobs are
    known one by one from then on.
    """

    def __init__(self) -> None:
        self._labels: dict[str, _Label] = {}
        self._fallen: dict[str, None] = {}  # the last to be asked about at the end
        self._total = 0.0

    def believes(self, label: str) -> bool:
        if label in self._fallen:
            return False
        known = self._labels.get(label)
        evidence = known.evidence if known else 0.0
        others = min(max(self._total - _told(evidence), -_OTHERS), _OTHERS)
        return _CREDIT + evidence + others > 0.0

    def hear(self, label: str, job: Name, scale: Scale, value: float, known: Cell | None) -> None:
        """One sample, the log of a speed; `known`: what was measured at its shape under this label before."""
        told = self._labels.setdefault(label, _Label())
        own = told.jobs.pop(job, None) or Kind(jobs=1)
        told.jobs[job] = own
        if known is not None and job not in told.heard and scale not in own.cells:
            told.heard.add(job)
            self._total -= _told(told.evidence)
            told.evidence = min(told.evidence + _agreement(value - known.mean, known.weight), _OTHERS)
            self._total += _told(told.evidence)
        own.add(scale, value)
        if len(told.jobs) > _MOST_JOBS:
            told.forget_oldest()

    def fall(self, label: str) -> dict[Name, Kind]:
        """What each of the jobs has measured that carry `label`, which is not believed any more."""
        self._fallen.pop(label, None)
        self._fallen[label] = None
        if len(self._fallen) > _MOST_FALLEN:
            oldest = next(iter(self._fallen))
            del self._fallen[oldest]
            self.forget({oldest})
        known = self._labels.get(label)
        if known is None:
            return {}
        jobs, known.jobs = known.jobs, {}
        return jobs

    def forget(self, labels: Set[str]) -> None:
        for label in labels:
            known = self._labels.pop(label, None)
            self._total -= _told(known.evidence) if known else 0.0


def _told(evidence: float) -> float:
    return min(max(evidence, _LEAST), _MOST)


def _agreement(off: float, weight: float) -> float:
    """Log of p(so far off | alike) / p(so far off | apart)."""
    alike = _ALIKE**2 * (1.0 + 1.0 / weight)
    apart = _APART**2 + alike
    return max(_LEAST, 0.5 * (math.log(apart / alike) - off**2 * (1.0 / alike - 1.0 / apart)))
