"""Records: where they come from, how they are written out, encoded, split and profiled."""
