"""tombola: winning tickets, supermasks and sparse training for any PyTorch model and training loop."""

from tombola import checkpoint, flops, patterns, sparse
from tombola.attach import Attachment, attach
from tombola.budgets import erdos_renyi, erk, global_, uniform
from tombola.masks import Masks
from tombola.methods.continuous import ContinuousSparsification
from tombola.methods.fixed import Fixed
from tombola.methods.gradual import GradualMagnitude
from tombola.methods.granet import GraNet
from tombola.methods.magnitude import IMP
from tombola.methods.rigl import RigL
from tombola.methods.set_ import SET
from tombola.methods.snfs import SNFS
from tombola.methods.snip import SNIP
from tombola.methods.static import Static
from tombola.methods.stochastic import StochasticSparsification
from tombola.search import Round, TicketSearch
from tombola.selection import maskable
from tombola.ticket import Ticket

__version__ = "0.1.0"

__all__ = [
    "IMP",
    "SET",
    "SNFS",
    "SNIP",
    "Attachment",
    "ContinuousSparsification",
    "Fixed",
    "GraNet",
    "GradualMagnitude",
    "Masks",
    "RigL",
    "Round",
    "Static",
    "StochasticSparsification",
    "Ticket",
    "TicketSearch",
    "attach",
    "checkpoint",
    "erdos_renyi",
    "erk",
    "flops",
    "global_",
    "maskable",
    "patterns",
    "sparse",
    "uniform",
]
