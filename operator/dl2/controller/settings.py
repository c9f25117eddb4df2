"""Everything about the operator that can be set. The CLI fills it; each field has one meaning and a sane default."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PodSettings(BaseModel):
    """What the operator puts on the pods of DLJobs."""

    model_config = ConfigDict(frozen=True)
    scheduler_name: str = ""  # a profile of kube-scheduler that packs; empty: the cluster's default
    native_gang: bool = False  # kube-scheduler binds a job's first pods all or none, too (KEP-4671)


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True)
    pods: PodSettings = PodSettings()
    debounce_seconds: float = Field(0.02, ge=0, le=5)  # wait for more changes before a pass
    resync_seconds: float = Field(120, ge=1)  # LIST everything again
    concurrency: int = Field(32, ge=1, le=256)  # writes in flight
    progress_seconds: float = Field(5, ge=0.2)  # ask each coordinator
    progress_timeout: float = Field(2, ge=0.1)
    trust_status_url: bool = False  # honour the annotation of simulated coordinators
    waits_seconds: float = Field(1, ge=0)  # read from the plan why groups wait this often
    soft_writes_per_second: float = Field(50, ge=1)  # queue positions, estimates: written when there is room
    soft_write_interval: float = Field(1, ge=0)  # seconds between two of them for one object
