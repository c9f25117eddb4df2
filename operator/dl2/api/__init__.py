"""The custom resources as types: `parse` a manifest, or learn in one sentence what is wrong with it."""

from dl2.api.base import InvalidObject, Metadata, Problem, Topology
from dl2.api.dljob import DLJob, Role
from dl2.api.parsing import MODELS, Object, parse
from dl2.api.podgroup import Member, PodGroup
from dl2.api.scalingpolicy import ScalingPolicy
from dl2.api.tenantqueue import ResourceLimits, TenantQueue

__all__ = [
    "MODELS",
    "DLJob",
    "InvalidObject",
    "Member",
    "Metadata",
    "Object",
    "PodGroup",
    "Problem",
    "ResourceLimits",
    "Role",
    "ScalingPolicy",
    "TenantQueue",
    "Topology",
    "parse",
]
