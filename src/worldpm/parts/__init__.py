"""The parts that steps are put together from."""
