"""Inference with the model of a run folder: predict, load, export, serve."""
