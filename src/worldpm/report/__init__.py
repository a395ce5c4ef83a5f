"""The report page: one module per kind of folder, and the layout."""
