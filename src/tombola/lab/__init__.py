"""Experiments: run folders, recipes, reports and the command line. Needs the extra ``lab``."""
