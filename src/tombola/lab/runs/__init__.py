"""Carrying out runs: from a config to its numbers, resumable at any moment, several side by side."""
