"""Suggestions: the space of a search, its samplers, and what stops it."""
