"""What leaves the house, a module for each form."""
