"""Hyperparameter searches. Not built yet: the first release has the training engine only."""
