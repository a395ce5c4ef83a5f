"""HTTP routes, one module per client whose API they follow."""
