"""The ground floor: what the field's words mean, in records and formulas."""
