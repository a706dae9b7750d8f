"""How the papers train the nets that several recipes share, as dense training at full scale.

conv6: section 4 of the ICLR-2020 submission of Savarese et al., arXiv 1912.04427.
resnet20: the same, and the authors' code, which adds Nesterov momentum; the papers also call this net ResNet-18.
vgg16: as resnet20. That the NeurIPS version trains both alike is from memory.
resnet50: Evci et al., arXiv 1911.11134: 32,000 steps of 4,096 images are 102 epochs, here 100, a warm-up over the first
five, and label smoothing of 0.1. One GPU does not hold 4,096 images: a step is computed in parts of 256, which batch
norm sees.

All train on all 50,000 or 1,281,167 training images. Savarese et al.'s code holds 5,000 of CIFAR-10 back; their text
counts 780 updates for two epochs, which is all of them.
"""

from __future__ import annotations

from dataclasses import replace

from tombola.lab.config import RunConfig
from tombola.lab.inputs import Images
from tombola.lab.methods import Dense
from tombola.lab.models import unmasked
from tombola.lab.settings import SGD, Adam, Drops, WarmUp

CONV6 = RunConfig(data="cifar10", model="conv6", method=Dense(), epochs=40, batch_size=60, optimizer=Adam(lr=3e-4))
RESNET20 = RunConfig(
    data="cifar10",
    model="resnet20",
    method=Dense(),
    epochs=85,
    batch_size=128,
    augment=True,
    optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    schedule=Drops(epochs=(56, 71), by=0.1),
    unmasked=unmasked("resnet20"),
)
VGG16 = replace(RESNET20, model="vgg16", unmasked=("fc.weight",))
SCORES = SGD(lr=0.1, momentum=0.9, nesterov=True)  # of both: as the weights', but without weight decay
REWIND_STEP = 780  # two epochs of 390 steps
RESNET50 = RunConfig(
    data="folder/imagenet",
    model="resnet50",
    method=Dense(),
    epochs=100,
    batch_size=4096,
    augment=True,
    inputs=Images(size=224),
    optimizer=SGD(lr=1.6, momentum=0.9, nesterov=True, weight_decay=1e-4),
    schedule=WarmUp(epochs=5, then=Drops(epochs=(30, 70, 90), by=0.1)),
    label_smoothing=0.1,
    micro_batch=256,
)
