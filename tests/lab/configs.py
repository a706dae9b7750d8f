"""Small configs of every method, and a config in which no field has its default."""

from __future__ import annotations

from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.methods import BUDGETS, Dense
from tombola.lab.settings import SGD, Adam, Constant, Cosine
from tombola.lab.transfer import Transfer
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.granet import GraNet
from tombola.methods.magnitude import IMP
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.snip import SNIP
from tombola.methods.stochastic import StochasticSparsification
from tombola.patterns import ConstantFanIn

DENSE = RunConfig(
    data="digits",
    model="conv_digits",
    method=Dense(),
    epochs=2,
    batch_size=128,
    optimizer=SGD(lr=0.1, momentum=0.9),
    schedule=Cosine(),
)
CS = replace(DENSE, method=ContinuousSparsification(initial_score=-0.02), rounds=2, score_optimizer=SGD(lr=1.0))
ASKED = replace(
    CS,
    method=ContinuousSparsification(density=(0.5, 0.2)),
    controls=("shuffled", "reinitialised"),
    control_rounds=(2,),
)
IMP_ = replace(DENSE, method=IMP(keep=0.5), rounds=3, rewind_step=4)
ISS = replace(DENSE, method=StochasticSparsification(), rounds=2, optimizer=Adam(lr=0.01), schedule=Constant())
TO_5, FROM_6 = (f"tombola.lab.recipes.classes:digits_{part}" for part in ("to_5", "from_6"))
ELSEWHERE = Transfer(data=FROM_6, epochs=3, batch_size=64, schedule=Cosine(), examples=320)
EVERY_METHOD = {
    "dense": DENSE,
    "dense, longer": replace(DENSE, method=Dense(times=2)),
    "cs": CS,
    "cs, density": ASKED,
    "imp": IMP_,
    "imp-c": replace(IMP_, method=IMP(keep=0.5, rewind=False), rounds=2, retrain=(1,)),
    "iss": ISS,
    "dense, shorter": replace(DENSE, method=Dense(times=0.5)),
    "dense, narrow": replace(DENSE, width=0.5),
    "rigl": replace(DENSE, method=RigL(density=0.2, every=4)),
    "rigl, sparse": replace(DENSE, method=RigL(density=0.2, every=4), sparse=True),
    "granet, sparse": replace(DENSE, method=GraNet(density=0.2, every=3), optimizer=Adam(lr=0.01), sparse=True),
    "rigl, lottery": replace(DENSE, method=RigL(density=0.2, every=4), lottery="fixed"),
    "rigl, lottery on": replace(DENSE, method=RigL(density=0.2, every=4), lottery="moving"),
    "set, uniform": replace(DENSE, method=SET(density=0.25, every=4, budget=BUDGETS["uniform-first-dense"])),
    "snip, fan-in": replace(DENSE, method=SNIP(density=0.3, pattern=ConstantFanIn())),
    "gmp": replace(DENSE, method=GradualMagnitude(density=0.1, every=3)),
    "cs, transfer": replace(ASKED, data=TO_5, batch_size=80, transfer=ELSEWHERE),
    "imp, transfer": replace(
        IMP_, data=TO_5, rounds=2, batch_size=80, transfer=ELSEWHERE, controls=("shuffled",), control_rounds=(1,)
    ),
    "cs, pruning": replace(CS, method=ContinuousSparsification(density=0.2, harden_at=0.5), rounds=1),
}
