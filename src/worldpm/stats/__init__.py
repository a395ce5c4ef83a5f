"""Statistics: losses and accuracies, intervals and tests, calibration, selection, style."""
