"""Every name that others match on: group, plurals, labels, annotations, the gate, conditions, states."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

GROUP: Final = "dl2.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

TENANT_QUEUE: Final = "TenantQueue"
POD_GROUP: Final = "PodGroup"
DL_JOB: Final = "DLJob"
SCALING_POLICY: Final = "ScalingPolicy"

PLURALS: Final = {
    TENANT_QUEUE: "tenantqueues",
    POD_GROUP: "podgroups",
    DL_JOB: "dljobs",
    SCALING_POLICY: "scalingpolicies",
}
NAMESPACED: Final = frozenset({POD_GROUP, DL_JOB})

LABEL_POD_GROUP: Final = "dl2.dev/pod-group"  # the group a pod belongs to
LABEL_MEMBER: Final = "dl2.dev/member"  # its member (role) in that group
LABEL_INDEX: Final = "dl2.dev/index"  # its number within the member
LABEL_ATTEMPT: Final = "dl2.dev/attempt"  # which run of the job created it (0 = first)
LABEL_JOB: Final = "dl2.dev/job"  # the DLJob that owns it
LABEL_NODE_KIND: Final = "dl2.dev/node-kind"  # nodes: real or kwok
LABEL_RACK: Final = "dl2.dev/rack"
LABEL_BLOCK: Final = "dl2.dev/block"

STATUS_URL: Final = (
    "dl2.dev/status-url"  # annotation of a simulated coordinator: where its progress is served
)
RELEASED: Final = "dl2.dev/released"  # annotation of a pod whose gate the operator has taken away

SCALED_BY: Final = "dl2.dev/scaled-by"  # annotation of a PodGroup: the scaling policy that chose its counts

GATE: Final = "dl2.dev/admission"  # the scheduling gate that holds a pod until its group is admitted
FIELD_MANAGER: Final = "dl2"

WORKER: Final = "worker"
SERVER: Final = "server"
COORDINATOR: Final = "coordinator"


class QueueCondition(StrEnum):
    ACTIVE = "Active"
    OVERCOMMITTED = "Overcommitted"


class GroupCondition(StrEnum):
    QUOTA_RESERVED = "QuotaReserved"
    ADMITTED = "Admitted"
    PODS_READY = "PodsReady"
    EVICTED = "Evicted"
    FINISHED = "Finished"


class JobCondition(StrEnum):
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    SCALING = "Scaling"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class PolicyCondition(StrEnum):
    READY = "Ready"
    ROLLED_BACK = "RolledBack"


class GroupState(StrEnum):
    """The printed state of a PodGroup."""

    PENDING = "Pending"
    ADMITTED = "Admitted"
    READY = "Ready"
    FINISHED = "Finished"


class JobState(StrEnum):
    """The printed state of a DLJob."""

    QUEUED = "Queued"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    SCALING = "Scaling"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
