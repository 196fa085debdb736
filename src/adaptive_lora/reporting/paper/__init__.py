"""A manuscript from a study's findings: facts, text, Markdown, LaTeX, an archive for arXiv."""
