"""Inference without PyTorch between the layers: the steps of a network prepared once, then run in one go."""
