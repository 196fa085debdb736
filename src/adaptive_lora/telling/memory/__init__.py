"""What the memory bank says, one kind of file a room; `telling.memory_bank` writes it."""
