"""How fast the operator admits through a real API server: `python benchmarks/admission.py [--peer] [--json FILE]`.

The load is that of Kueue's own scheduler benchmark: 5 trees of 6 queues (min 20, max 120 CPUs, reclaim Any,
withinQueue LowerPriority), 15,000 groups in 60 seconds, finished by the load generator after their run time.
Nodes are so large that only quota binds. kube-scheduler and kube-controller-manager are stopped meanwhile:
there are no pods, and what they spend on watching is not what is measured. The operator has the rights of its
Deployment; it and the load generator come with tokens, as pods do: of a client certificate the API server checks
the signatures with every request.

`--peer` runs the same load through Kueue first, on a cluster of its own: the program of Kueue's own benchmark, which
is its manager without webhooks, built from peers/kueue/go.mod, with Kueue's default of 50 requests a second.

Figures:
  wall_seconds        from the first creation to the last group finished
  wait_CLASS_s        mean time from creation to the admission that it ran to the end in
  quota_use_percent   CPUs that the queues' status calls used over that time, of the 600 there are, as Kueue's own
                      benchmark measures it. A status lags behind; what the load has seen admitted is printed too
  cpu_seconds         of what admits, start-up included
  peak_rss_mib        of what admits
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import yaml

from dl2.embedded.cluster import EmbeddedCluster
from load.admitting import DL2, KUEUE, SPACE, Admitting, Contender
from load.groups import Load, Report, Server
from load.systems import CAPACITY, System
from load.usage import Usage

GOALS = {
    "wall_seconds": "<= 150",
    "groups_per_second": ">= 100",
    "quota_use_percent": "> 80",
    "cpu_seconds": "",
    "peak_rss_mib": "< 220",
    "wait_large_s": "",
    "wait_medium_s": "",
    "wait_small_s": "",
}
NOT_FIGURES = ("groups_per_second",)
IDLE = ("kube-scheduler", "kube-controller-manager")  # stopped while it is measured
TELL_SECONDS = 10.0
MANIFESTS = Path(__file__).resolve().parent.parent / "manifests" / "base"


def generate(system: System, server: Server, scale: float, timeout: float, pipe: Connection) -> None:
    """The load generator's process: sends a Report every TELL_SECONDS, and the last one with True."""
    report = asyncio.run(
        Load(system, server, scale, timeout).run(lambda report: pipe.send((False, report)), TELL_SECONDS)
    )
    pipe.send((True, report))


def drive(system: System, server: Server, scale: float, timeout: float, running: Admitting) -> Report:
    """Run the load in a process of its own and tell how it gets on. Raises RuntimeError when it breaks."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=generate, args=(system, server, scale, timeout, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(timeout + 60):
                raise RuntimeError("the load generator does not answer")
            last, report = ours.recv()
            tell(report, running)
            if last:
                return report  # type: ignore[no-any-return]
    except EOFError:
        raise RuntimeError("the load generator has ended; its error stands above") from None
    finally:
        child.terminate()
        child.join()


def tell(report: Report, running: Admitting) -> None:
    print(
        f"{report.wall:6.1f} s  created {report.created:6}  finished {report.finished:6}  "
        f"admitted {report.cpus:4} CPUs  used {running.usage.cpu_seconds():6.1f} s "
        f"{running.usage.memory_mib():5.0f} MiB",
        file=sys.stderr,
    )


def let_in(cluster: EmbeddedCluster) -> None:
    """Service accounts: the operator's with its rights, and one for the load generator, which may do anything."""
    cluster.kubectl("create", "namespace", SPACE)
    for file in ("service-account.yaml", "rights.yaml"):
        cluster.kubectl("apply", "-n", SPACE, "-f", str(MANIFESTS / file))
    cluster.kubectl("create", "serviceaccount", "load", "-n", SPACE)
    cluster.kubectl(
        "create",
        "clusterrolebinding",
        "load",
        "--clusterrole=cluster-admin",
        f"--serviceaccount={SPACE}:load",
    )


Facts = dict[str, float]


def measure(contender: Contender, scale: float, timeout: float, log: Path) -> tuple[Facts, Facts, Report]:
    """(figures, further facts, the load's report)."""
    with EmbeddedCluster(f"admission-{os.getpid()}", kwok_nodes=8, cpus=1024, gpus=0, owned=True) as cluster:
        contender.install(cluster)
        objects = yaml.safe_dump_all(contender.system.objects())
        cluster.kubectl("apply", "--server-side", "-f", "-", input=objects)
        let_in(cluster)
        pids = {status.name: status.pid for status in cluster.status()}
        for name in IDLE:
            cluster.stop_component(name)
        servers = {name: Usage(pids[name] or 0) for name in ("kube-apiserver", "etcd")}
        server = Server(cluster.server, cluster.pki.ca, cluster.service_account_token(SPACE, "load"))
        with contender.admits(cluster, log) as running:
            before = {name: process.cpu_seconds() for name, process in servers.items()}
            report = drive(contender.system, server, scale, timeout, running)
            facts = {
                f"{name} CPU seconds": process.cpu_seconds() - before[name]
                for name, process in servers.items()
            }
            figures = {
                "wall_seconds": report.wall,
                "groups_per_second": report.finished / report.wall,
                "quota_use_percent": 100 * report.told / (CAPACITY * report.wall),
                "cpu_seconds": running.usage.cpu_seconds(),
                "peak_rss_mib": running.usage.memory_mib(),
                **{f"wait_{name}_s": wait for name, wait in report.waits.items()},
            }
            facts |= from_metrics(running.metrics())
    facts["load generator CPU seconds"] = report.processor
    facts["quota use by admissions that the load has seen, percent"] = (
        100 * report.held / (CAPACITY * report.wall)
    )
    facts["quota use by work alone, percent"] = 100 * report.worked / (CAPACITY * report.wall)
    facts |= {f"evictions of {name} groups": count for name, count in sorted(report.evictions.items())}
    facts |= {"requests repeated": report.repeats, "lists of the load generator": report.lists}
    return figures, facts, report


def from_metrics(metrics: Mapping[tuple[str, ...], float]) -> Facts:
    facts: Facts = {}
    for name in ("dl2_pass_seconds", "dl2_decide_seconds"):
        for part in ("count", "sum"):
            if (key := (f"{name}_{part}",)) in metrics:
                facts[f"{name} {part}"] = metrics[key]
    writes = {key[1:]: value for key, value in metrics.items() if key[0] == "dl2_writes_total"}
    facts |= {f"writes {' '.join(labels)}": value for labels, value in sorted(writes.items())}
    return facts


def show(columns: Mapping[str, Facts]) -> None:
    """A table with a column for each system."""
    print(" " * 20, *(f"{name:>8}" for name in columns), " goal")
    for figure, goal in GOALS.items():
        print(f"{figure:20}", *(f"{figures[figure]:8.1f}" for figures in columns.values()), f" {goal}")


def show_facts(name: str, facts: Facts) -> None:
    print(f"{name}:")
    for fact, value in facts.items():
        print(f"  {fact}: {value:.1f}")
    print(f"  load average: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the number of groups; 0.1 for a quick try"
    )
    parser.add_argument(
        "--timeout", type=float, default=900.0, help="seconds after which the load is given up"
    )
    parser.add_argument("--log", type=Path, help="where the operator logs to; default: a file that goes")
    parser.add_argument("--peer", action="store_true", help="run the load through Kueue first")
    options = parser.parse_args()
    contenders = ({"Kueue": KUEUE} if options.peer else {}) | {"DL2": DL2}
    columns: dict[str, Facts] = {}
    unfinished: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, contender in contenders.items():
            log = options.log if name == "DL2" and options.log else Path(folder) / f"{name}.log"
            columns[name], facts, report = measure(contender, options.scale, options.timeout, log)
            show_facts(name, facts)
            if not report.complete:
                unfinished[name] = report.groups - report.finished
    show(columns)
    if options.json:
        wanted = {
            name: {k: round(v, 2) for k, v in figures.items() if k not in NOT_FIGURES}
            for name, figures in columns.items()
        }
        found = {"figures": wanted.pop("DL2")} | ({"peer": wanted["Kueue"]} if wanted else {})
        options.json.write_text(json.dumps(found))
    if unfinished:
        sys.exit("; ".join(f"{name}: {count} groups have not finished" for name, count in unfinished.items()))


if __name__ == "__main__":
    main()
