"""Imports of the server for warm starts, before it forks processes."""

import gc
from importlib import import_module

STEPS = ("forums", "preferences", "training", "evaluation", "laws", "scoring", "serving")

# the packages' objects are never freed, but collections in each process would visit them
gc.disable()
for step in STEPS:
    import_module(f"worldpm.{step}.run")
import_module("tests.warm_start")
gc.freeze()
gc.enable()
