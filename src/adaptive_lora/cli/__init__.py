"""The verbs of the command line: those that do and those that read, and how all of them speak."""
