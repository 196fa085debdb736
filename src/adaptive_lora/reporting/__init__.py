"""Figures and reports, from the ledger alone."""
