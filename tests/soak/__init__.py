"""Long runs against faults and wear: scripts that print JSON, by `make soak` and never by the suite."""
