"""The steps of the road, one module each: a frozen Config, a pure core, a thin `run`."""
