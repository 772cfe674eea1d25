"""Measures of what a generator draws, computed without any download."""
