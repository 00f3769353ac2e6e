"""Config of a run: how it is saved, trusted, read again and resumed."""
