"""The character-level language model of the RigL paper: Evci et al., ICML 2020, arXiv 1911.11134.

A shared embedding of 128, a GRU of 512, and a readout of two linear layers of 256 and 128, whose outcome is multiplied
with the embedding of each character. The authors' code does not contain it. That a ReLU stands between the two, and
that "shared" means that the embedding serves for the output as well, is how their sentence is read here.
"""

from __future__ import annotations

from torch import Tensor, nn

from tombola.lab.models.initial import scaled


def gru_lm(*, classes: int = 256, width: float = 1.0) -> nn.Module:
    """1,179,648 weights and 3,712 biases, at 256 characters.

    Input: (N, T) integers, one a character. Output: (N, T, classes), the logits of the character that follows each.
    ``width`` multiplies all sizes but ``classes``.
    """
    return _LanguageModel(classes, *(scaled(size, width) for size in (128, 512, 256)))


class _LanguageModel(nn.Module):
    def __init__(self, classes: int, embedded: int, hidden: int, readout: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, embedded)
        self.gru = nn.GRU(embedded, hidden)
        self.fc1 = nn.Linear(hidden, readout)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(readout, embedded)
        self.out = nn.Linear(embedded, classes)
        self.out.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew as PyTorch does, the embedding as a linear layer's weight."""
        for module in (self.gru, self.fc1, self.fc2, self.out):
            module.reset_parameters()

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, T, classes)."""
        states, _ = self.gru(self.embedding(tokens.T))  # the steps first, as they are computed
        logits: Tensor = self.out(self.fc2(self.relu(self.fc1(states))))
        return logits.transpose(0, 1)
