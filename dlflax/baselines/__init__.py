"""Reference models, which a run states beside its network."""
