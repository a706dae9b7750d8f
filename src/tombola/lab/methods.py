"""The methods, patterns and budgets of experiments, and what they are called in the files of these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from tombola.budgets import Budget, erdos_renyi, erk, global_, uniform
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.granet import GraNet
from tombola.methods.magnitude import IMP
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.snfs import SNFS
from tombola.methods.snip import SNIP
from tombola.methods.static import Static
from tombola.methods.stochastic import StochasticSparsification
from tombola.patterns import NM, Block, ConstantFanIn


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Plain training of the whole network, ``times`` as long as one round: the schedule is stretched to fit."""

    times: float = 1

    def __post_init__(self) -> None:
        if not self.times > 0:
            raise ValueError(f"times must be above 0, not {self.times}")


SoftMethod: TypeAlias = ContinuousSparsification | StochasticSparsification
Sparse: TypeAlias = Static | SNIP | SET | RigL | SNFS | GradualMagnitude | GraNet
"""Methods that know no rounds."""
REALLY_SPARSE = (RigL, SET, Static, GraNet)
"""Methods that can train sparse layers."""
Pruning: TypeAlias = SoftMethod | Sparse
"""What trains one sparse network in one go; Continuous Sparsification with ``harden_at``, or supermasks."""
Method: TypeAlias = Dense | IMP | Pruning

METHODS: dict[str, type] = {
    "dense": Dense,
    "cs": ContinuousSparsification,
    "imp": IMP,
    "iss": StochasticSparsification,
    "static": Static,
    "snip": SNIP,
    "set": SET,
    "rigl": RigL,
    "snfs": SNFS,
    "gmp": GradualMagnitude,
    "granet": GraNet,
}
PATTERNS: dict[str, type] = {"n:m": NM, "block": Block, "constant fan-in": ConstantFanIn}
BUDGETS: dict[str, Budget] = {
    "uniform": uniform,
    "uniform-first-dense": partial(uniform, first_dense=True),
    "erdos-renyi": erdos_renyi,
    "erk": erk,
    "global": global_,
    "rigl-lenet": partial(uniform, densities={"fc1.weight": 0.01, "fc2.weight": 0.11}, compensate=False),
    "rigl-plus": partial(uniform, densities={"fc1.weight": 0.04 * 408 / 784, "fc2.weight": 0.14}, compensate=False),
}


def never_dense(method: Method) -> str:
    """Why ``method`` cannot train sparse layers, which never hold anything of the dense size; "" if it can."""
    if not isinstance(method, REALLY_SPARSE):
        return "needs weights, gradients or scores of the dense layers' size"
    if method.pattern is not None:
        return f"has the pattern {method.pattern}, while the connections of sparse layers lie anywhere"
    if isinstance(method, RigL) and method.average > 1:
        return f"adds up dense gradients (average={method.average})"
    return ""
