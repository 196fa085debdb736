"""Where a base model lies: embedded, fetched into the cache, in a GGUF file, in a folder, or on the hub."""
