"""What is sound of a broken ledger: read through SQLite and page by page, proven by digests, written to a new one."""
