"""Processes of this machine, told apart beyond their pid. Linux only: /proc and pidfds."""

import os
import signal
from contextlib import suppress
from functools import cache
from pathlib import Path

from dl2.embedded.state import ProcessIdentity


@cache
def boot_id() -> str:
    """The kernel's id of this boot: pids and start times mean nothing beyond it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the running process `pid`; None where there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may hold blanks and parentheses itself: fields are counted behind the
    # last one.
    fields = stat[stat.rindex(")") + 2 :].split()
    state, started = fields[0], int(fields[19])
    return None if state in "ZX" else ProcessIdentity(pid=pid, started=started, boot=boot_id())


def alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still runs."""
    return identify(identity.pid) == identity


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A pidfd of this very process, or None once it has ended."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Checked after opening: from here on the descriptor cannot come to mean another process.
    if alive(identity):
        return descriptor
    os.close(descriptor)
    return None


def send(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Signals this very process; does nothing once it has ended."""
    if (descriptor := open_pidfd(identity)) is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
        os.close(descriptor)


def carrying(variable: bytes) -> list[ProcessIdentity]:
    """Every process that was started with `variable` (NAME=value) in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if variable in environment.split(b"\0") and (identity := identify(int(entry.name))) is not None:
            found.append(identity)
    return found
