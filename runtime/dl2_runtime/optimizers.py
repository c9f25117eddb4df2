"""The update rules that servers apply, in place and equal to MXNet's to float tolerance.

A rule is plain JSON that workers send ahead of their gradients whenever it changes, so a learning-rate schedule, or a
new batch size, takes effect at exactly the round at which the script changed it. Source of the formulas: MXNet 1.9
`sgd_update`, `sgd_mom_update` and `adam_update`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping

import numpy as np

State = Dict[str, "np.ndarray[Any, Any]"]
Array = Any

_STATE: dict[str, tuple[str, ...]] = {"sum": (), "sgd": ("momentum",), "adam": ("mean", "variance")}


@dataclass(frozen=True)
class Rule:
    """`name` is "sum" (servers only add up), "sgd" or "adam"; the rest is named as in MXNet's optimizers.

    With `asynchronous` a server applies each gradient as it comes instead of one sum per round.
    """

    name: str = "sum"
    lr: float = 0.01
    wd: float = 0.0
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    rescale_grad: float = 1.0
    clip_gradient: float = 0.0  # 0: not clipped
    asynchronous: bool = False
    lr_mult: Mapping[str, float] = field(default_factory=dict)  # by parameter
    wd_mult: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Rule:
        """Raises ValueError for a rule that this version does not know."""
        try:
            rule = cls(**body)
        except TypeError as error:
            raise ValueError(f"an unknown update rule: {error}") from None
        if rule.name not in _STATE:
            raise ValueError(f"update rule {rule.name!r:.40} is none of {', '.join(_STATE)}")
        return rule

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the arrays that this rule keeps beside each chunk."""
        return () if self.name == "sgd" and not self.momentum else _STATE[self.name]


def apply(rule: Rule, key: str, value: Array, grad: Array, state: State, updates: int) -> None:
    """Update `value` and `state` by the summed gradient, the `updates`-th one (from 1); `grad` is used up."""
    for name in rule.state:
        if name not in state:
            state[name] = np.zeros_like(value)
    lr = rule.lr * rule.lr_mult.get(key, 1.0)
    wd = rule.wd * rule.wd_mult.get(key, 1.0)
    if rule.name == "sgd":
        _sgd(rule, lr, wd, value, grad, state)
    elif rule.name == "adam":
        _adam(rule, lr, wd, value, grad, state, updates)


def _sgd(rule: Rule, lr: float, wd: float, value: Array, grad: Array, state: State) -> None:
    number = value.dtype.type  # numpy < 2 would otherwise widen, and numpy 2 does not
    if rule.clip_gradient > 0:
        np.multiply(grad, number(rule.rescale_grad), out=grad)
        np.clip(grad, -rule.clip_gradient, rule.clip_gradient, out=grad)
        np.multiply(grad, number(-lr), out=grad)
    else:
        np.multiply(grad, number(-lr * rule.rescale_grad), out=grad)
    if rule.momentum:
        momentum = state["momentum"]
        np.multiply(momentum, number(rule.momentum), out=momentum)
        np.add(momentum, grad, out=momentum)
        if wd:
            np.multiply(value, number(-lr * wd), out=grad)
            np.add(momentum, grad, out=momentum)
        np.add(value, momentum, out=value)
    else:
        if wd:
            np.multiply(value, number(1.0 - lr * wd), out=value)
        np.add(value, grad, out=value)


def _adam(rule: Rule, lr: float, wd: float, value: Array, grad: Array, state: State, updates: int) -> None:
    number = value.dtype.type
    mean, variance = state["mean"], state["variance"]
    np.multiply(grad, number(rule.rescale_grad), out=grad)
    if wd:
        np.add(grad, value * number(wd), out=grad)
    if rule.clip_gradient > 0:
        np.clip(grad, -rule.clip_gradient, rule.clip_gradient, out=grad)
    np.multiply(mean, number(rule.beta1), out=mean)
    np.add(mean, grad * number(1 - rule.beta1), out=mean)
    np.multiply(variance, number(rule.beta2), out=variance)
    np.multiply(grad, grad, out=grad)
    np.multiply(grad, number(1 - rule.beta2), out=grad)
    np.add(variance, grad, out=variance)
    corrected = lr * math.sqrt(1 - rule.beta2**updates) / (1 - rule.beta1**updates)
    np.sqrt(variance, out=grad)
    np.add(grad, number(rule.epsilon), out=grad)
    np.divide(mean, grad, out=grad)
    np.multiply(grad, number(corrected), out=grad)
    np.subtract(value, grad, out=value)
