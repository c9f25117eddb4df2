"""ScalingPolicy: the staged rollout of a scaling policy, from watching to deciding."""

# ruff: noqa: RUF012 - pydantic copies mutable defaults

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dl2.api.base import (
    MAX_COUNT,
    POLICY_PATTERN,
    Metadata,
    Model,
    Name,
    Problem,
    Problems,
    Status,
    Tally,
    Text,
    Time,
    Word,
)

PolicyName = Annotated[str, Field(min_length=1, max_length=1024, pattern=POLICY_PATTERN)]
Percent = Annotated[int, Field(ge=0, le=100)]
Stage = Literal["Observe", "Shadow", "Canary", "Active"]


class Canary(Model):
    percent: Percent = 10
    queues: Annotated[list[Name], Field(max_length=256)] = []


class Guardrails(Model):
    max_scale_step: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 4
    min_gain_percent: Percent = 3
    max_jct_regression_percent: Annotated[int, Field(ge=0, le=1000)] = 10
    max_scaling_failures: Annotated[int, Field(ge=1, le=1000)] = 3
    window_minutes: Annotated[int, Field(ge=1, le=10080)] = 60


class ScalingPolicySpec(Model):
    stage: Stage = "Observe"
    champion: PolicyName = "drf"
    challenger: PolicyName | None = None
    interval_seconds: Annotated[int, Field(ge=5, le=86400)] = 60
    canary: Canary = Canary()
    guardrails: Guardrails = Guardrails()
    promotion: Literal["Manual", "Automatic"] = "Manual"


class Outcome(Model):
    """What the jobs under one policy did: mean completion time with its confidence interval."""

    jobs: Tally = 0
    mean_jct_seconds: Annotated[float, Field(ge=0)] | None = None
    low_jct_seconds: Annotated[float, Field(ge=0)] | None = None
    high_jct_seconds: Annotated[float, Field(ge=0)] | None = None
    slowdown: Annotated[float, Field(ge=0)] | None = None


class Observed(Model):
    champion: Outcome = Outcome()
    challenger: Outcome = Outcome()


class Rollback(Model):
    time: Time
    reason: Text


class Move(Model):
    """One step of the rollout."""

    time: Time
    from_: Annotated[Word, Field(alias="from")]
    to: Word
    reason: Word
    message: Text = ""
    observed_generation: Tally = 0


class ScalingPolicyStatus(Status):
    stage: Word = ""
    decisions: Tally = 0
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    predicted_gain: float | None = None
    observed: Observed | None = None
    last_rollback: Rollback | None = None
    history: Annotated[list[Move], Field(max_length=20)] = []


class ScalingPolicy(Model):
    metadata: Metadata
    spec: ScalingPolicySpec
    status: ScalingPolicyStatus = ScalingPolicyStatus()

    def problems(self) -> Problems:
        """What the schema alone cannot tell; the server holds the same rules in CEL."""
        spec = self.spec
        if spec.stage != "Observe" and spec.challenger is None:
            yield Problem("spec.challenger", f"is missing in stage {spec.stage}", "name the policy to prove")
        if spec.stage == "Canary" and spec.canary.percent == 0 and not spec.canary.queues:
            yield Problem("spec.canary", "chooses no job", "raise percent above 0 or name queues")
