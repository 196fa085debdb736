"""A study: its file, the matrix of its runs, planning, training, and the ledger that records the results."""
