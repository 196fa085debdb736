"""What the memory bank says, one kind of file a room; `reporting.memory.memory_bank` writes it."""
