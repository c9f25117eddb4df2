"""Dominant-resource fairness over workers and servers, one bundle at a time."""

from __future__ import annotations

import heapq

from dl2.scaling.bounds import choices, in_order
from dl2.scaling.interface import STOPPED, Observation, Scale
from dl2.scaling.room import Room


class Drf:
    """Progressive filling (Ghodsi et al., NSDI 2011, algorithm 1): the job with the smallest dominant share is next.

    A job starts with its minimum and then gets a worker and a server together, as in Optimus' and DL2's
    comparisons; at the maximum of one, or where a pair no longer fits, the other alone.
    """

    name = "drf"

    def allocate(self, observation: Observation) -> dict[str, Scale]:
        room = Room(observation)
        jobs = [job for job in in_order(observation.jobs) if choices(job) is not None and room.hosts(job)]
        held = [STOPPED] * len(jobs)
        heap = [(0.0, i) for i in range(len(jobs))]
        while heap:
            share, i = heapq.heappop(heap)
            job, limits = jobs[i], choices(jobs[i])
            assert limits is not None
            least, most = limits
            for step in (Scale(1, 1), Scale(1, 0), Scale(0, 1)) if held[i].workers else (least,):
                to = Scale(held[i].workers + step.workers, held[i].servers + step.servers)
                if to.workers > most.workers or to.servers > most.servers:
                    continue
                change = room.amounts(job, step)
                if room.fits(job, change):
                    room.take(job, change)
                    held[i] = to
                    heapq.heappush(heap, (share + room.dominant(change), i))
                    break
        return {job.id: scale for job, scale in zip(jobs, held, strict=True) if scale.workers}
