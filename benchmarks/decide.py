"""How long one scheduling pass takes, in process: `python benchmarks/decide.py [--json FILE]`.

Figures (milliseconds of one core, the median of several passes):
  pass_500_ms     from scratch: 1,000 groups, half of them running, on 500 nodes, 50 queues
  pass_5000_ms    from scratch: 10,000 groups, half of them running, on 5,000 nodes, 50 queues
  incremental_ms  the small cluster, at rest until one running group ends, with a `Cache`
The cluster is full and fair; before the passes from scratch one running group in fifty has ended and as many
have come.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from dl2 import compiled

compiled.prefer()

from dl2.scheduling.apply import settle  # noqa: E402
from dl2.scheduling.decide import Cache, decide  # noqa: E402
from dl2.scheduling.snapshot import Group, Key, Limits, Member, Node, Queue, Snapshot  # noqa: E402

GPU = "nvidia.com/gpu"
HOST = "kubernetes.io/hostname"


def cluster(nodes: int, running: int, waiting: int, queues: int) -> Snapshot:
    """A busy cluster: 8 GPUs a node, ten nodes a rack, ten racks a zone; teams in five departments."""
    rng = Random(1)
    machines = tuple(
        Node(
            f"node-{i:05}",
            {"cpu": 64_000, "memory": 2**39, "pods": 110, GPU: 8},
            {
                HOST: f"node-{i:05}",
                "dl2.dev/rack": f"rack-{i // 10:04}",
                "topology.kubernetes.io/zone": f"zone-{i // 100:03}",
            },
        )
        for i in range(nodes)
    )
    departments = [
        Queue(f"dep-{d}", limits={GPU: Limits(max=nodes * 4)}, namespace_selector=()) for d in range(5)
    ]
    share = nodes * 8 // queues
    teams = [
        Queue(
            f"team-{n}", f"dep-{n % 5}", 1 + n % 3, {GPU: Limits(share // 2, share * 4)}, frozenset({GPU}),
            namespace_selector=(), created=n,
        )
        for n in range(queues)
    ]  # fmt: skip
    everyone = groups(rng, "first", running + waiting, queues, 0.0)
    done = Snapshot(0.0, (*departments, *teams), everyone, machines)
    for _ in range(4):
        done = settle(done, decide(done))
    return replace(done, now=1e6, groups=churn(rng, done.groups, queues))


def churn(rng: Random, before: tuple[Group, ...], queues: int) -> tuple[Group, ...]:
    """One running group in fifty has ended, and as many have come."""
    running = [group for group in before if group.admitted is not None]
    ended = set(map(id, rng.sample(running, max(1, len(running) // 50))))
    return (*(g for g in before if id(g) not in ended), *groups(rng, "late", len(ended), queues, 1e5))


def groups(rng: Random, name: str, count: int, queues: int, created: float) -> tuple[Group, ...]:
    def members() -> tuple[Member, ...]:
        gpus, pods = rng.choice([(1, 1), (1, 2), (1, 4), (2, 2), (4, 2), (8, 1), (8, 2), (8, 4)])
        requests = {"cpu": gpus * 4000, "memory": gpus * 2**33, GPU: gpus}
        least = max(1, pods // 2) if rng.random() < 0.3 else pods
        return (Member("worker", pods, least, requests),)

    return tuple(
        Group(
            Key(f"team-{i % queues}", f"{name}-{i}"), f"team-{i % queues}", members(),
            priority=rng.choice([0, 0, 0, 10]), created=created + i,
        )
        for i in range(count)
    )  # fmt: skip


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append((time.process_time() - start) * 1000)
    return statistics.median(times)


def incremental(snapshot: Snapshot, rounds: int) -> float:
    """From a cluster at rest one running group ends before every pass; what the pass plans is carried out."""
    cache = Cache()
    for _ in range(5):
        snapshot = settle(snapshot, decide(snapshot, cache=cache))
    times = []
    for n in range(rounds):
        running = [group for group in snapshot.groups if group.admitted is not None]
        ended = running[n * 37 % len(running)]
        snapshot = replace(snapshot, groups=tuple(group for group in snapshot.groups if group is not ended))
        start = time.process_time()
        plan = decide(snapshot, cache=cache)
        times.append((time.process_time() - start) * 1000)
        changed = {decision.key for decision in plan.actions}
        after = settle(snapshot, plan).groups
        kept = zip(snapshot.groups, after, strict=True)
        snapshot = replace(snapshot, groups=tuple(new if new.key in changed else old for old, new in kept))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    gc.set_threshold(5_000, 3, 5_000)  # as `dl2 run` has it
    small, large = cluster(500, 500, 500, 50), cluster(5000, 5000, 5000, 50)
    figures = {
        "pass_500_ms": milliseconds(lambda: decide(small), 9),
        "pass_5000_ms": milliseconds(lambda: decide(large), 3),
        "incremental_ms": incremental(small, 25),
    }
    print("machine code" if compiled.in_use() else "interpreted; `make compiled` builds machine code")
    for name, value in figures.items():
        print(f"{name:16} {value:8.1f}")
    if options.json:
        options.json.write_text(json.dumps({"figures": {name: round(v, 2) for name, v in figures.items()}}))


if __name__ == "__main__":
    main()
