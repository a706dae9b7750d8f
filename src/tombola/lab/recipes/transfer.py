"""Tickets between data sets: ResNet-20 between CIFAR-10 and CIFAR-100, both ways, found by IMP and CS.

After Morcos, Yu, Paganini & Tian, "One ticket to win them all", NeurIPS 2019, arXiv 1906.02773: tickets found by IMP on
one data set are trained on others. Within natural images they do nearly as well there as tickets that were found there,
and those of the larger data set transfer better. Nothing of a ticket is changed but the classifier, which begins fresh
where the number of classes is another one; so it is in the code of the reproduction by Gohil et al. (ReScience
2020, github.com/varungohil/Generalizing-Lottery-Tickets), from which such details are taken here.

Here each ticket that a search finds is trained on the other data too, as long as one that was found there; and so are
shuffled and re-initialised ones. Beside them stand the searches on those data themselves, and dense nets. Training is
that of nets.py, on either data set.

Departs from the paper in:
  * ResNet-20 instead of VGG-19 and ResNet-50, and CIFAR alone of its six data sets, as nets and rounds are those of
    cs_resnet20.py: IMP removes 20 % of all weights together a round and rewinds to step 780, 18 rounds;
  * the classifier carries no mask (as in Savarese et al.'s code), so that none is needed for a fresh one;
  * controls keep each layer's number of weights; the random tickets of the reproduction only that of the whole net;
  * tickets are not transferred between optimisers; CS, three seeds, dense nets, and a cosine for both searches (whose
    tickets are not transferred) are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from tombola.lab.config import RunConfig
from tombola.lab.recipes.base import SMOKE_EXAMPLES, Recipe, Scale, by, smaller
from tombola.lab.recipes.baselines import controlled, dense, other_schedules
from tombola.lab.recipes.nets import RESNET20, REWIND_STEP, SCORES
from tombola.lab.transfer import Transfer
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.magnitude import IMP

_HERE = "tombola.lab.recipes.classes"
PAIRS: dict[Scale, tuple[str, str]] = {
    "full": ("cifar10", "cifar100"),
    "cpu": (f"{_HERE}:cifar10_animals", f"{_HERE}:cifar10_vehicles"),
    "smoke": (f"{_HERE}:digits_to_5", f"{_HERE}:digits_from_6"),
}


def configs(scale: Scale) -> Sequence[RunConfig]:
    """Both ways: searches whose tickets are trained on the other data too, and dense nets."""
    base = smaller(RESNET20, scale, epochs=6, width=0.25)
    base = replace(base, examples=by(scale, full=None, cpu=2500, smoke=SMOKE_EXAMPLES))
    one, other = (replace(base, data=data) for data in PAIRS[scale])
    return [*_from(one, other, scale), *_from(other, one, scale)]


def _from(base: RunConfig, target: RunConfig, scale: Scale) -> list[RunConfig]:
    rounds, cs_rounds = by(scale, full=18, cpu=5, smoke=2), by(scale, full=5, cpu=2, smoke=1)
    imp = replace(
        base, method=IMP(keep=0.8), rounds=rounds, rewind_step=by(scale, full=REWIND_STEP, cpu=4, smoke=1),
        transfer=Transfer(**{f.name: getattr(target, f.name) for f in fields(Transfer)}),
    )  # fmt: skip
    cs = replace(
        imp, method=ContinuousSparsification(initial_score=by(scale, full=-0.1, cpu=-0.05, smoke=0.0)),
        score_optimizer=SCORES, rounds=cs_rounds,
    )  # fmt: skip
    alone = [replace(run, transfer=None) for run in (imp, cs)]
    searches = [
        controlled(imp, *by(scale, full=(6, 12, 18), cpu=(3, 5), smoke=(2,))),  # 26, 6.9 and 1.8 % of the weights
        controlled(cs, *by(scale, full=(1, 2, 5), cpu=(1, 2), smoke=(1,))),
    ]
    return [*dense(alone), *searches, *other_schedules(alone)]


RECIPE = Recipe(
    name="transfer",
    paper="Morcos et al. 2019",
    where="transfer between data sets",
    about="Tickets found on one data set and trained on another, both ways, beside tickets that were found there.",
    departures="ResNet-20 and CIFAR alone; the classifier carries no mask and begins fresh; CS beside IMP.",
    data="CIFAR-10, CIFAR-100",
    model="ResNet-20",
    methods="IMP, CS, dense",
    cpu="CIFAR-10's animals and vehicles, 2,500 images of each, for CIFAR-10 and CIFAR-100; 6 of 85 epochs, a quarter "
    "of the channels; IMP 5 rounds, CS 2.",
    configs=configs,
)
