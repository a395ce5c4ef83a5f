"""What the server of warm starts imports before it is asked for processes."""

import gc
from importlib import import_module

STEPS = ("forums", "preferences", "training", "evaluation", "laws", "scoring", "serving")

# the objects of the packages stay, and collections would visit them, also in each process
gc.disable()
for step in STEPS:
    import_module(f"worldpm.{step}.run")
import_module("tests.warm_start")
gc.freeze()
gc.enable()
