"""What is asked and what came of it: study files, run identities, the ledger, tables."""
