"""Reference models that a run scores beside its network."""
