"""Sweeps: which trials, trained as populations in one program each, recorded, reported."""
