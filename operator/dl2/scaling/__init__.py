"""Scaling policies: how many workers and parameter servers each job gets. Pure: no I/O, no Kubernetes."""

from dl2.scaling.cutter import Cut, cut
from dl2.scaling.interface import JobView, NodeView, Observation, Policy, Scale, SpeedSample
from dl2.scaling.registry import UnknownPolicy, load_policy, policy_names

__all__ = [
    "Cut",
    "JobView",
    "NodeView",
    "Observation",
    "Policy",
    "Scale",
    "SpeedSample",
    "UnknownPolicy",
    "cut",
    "load_policy",
    "policy_names",
]
