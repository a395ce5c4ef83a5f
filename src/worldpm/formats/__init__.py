"""What lies on disk and what a model reads: folders, tables, Markdown, chat."""
