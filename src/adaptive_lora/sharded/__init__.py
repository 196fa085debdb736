"""Many adapters on a base that is larger than one GPU: a command for `torchrun`, and what it does, from Python."""
