"""What a running process has used so far, from /proc."""

from __future__ import annotations

import os
from pathlib import Path


class Usage:
    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self, field: str = "VmHWM") -> float:
        """VmHWM is the peak, VmRSS the present. Raises LookupError for a field that there is not."""
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise LookupError(field)
