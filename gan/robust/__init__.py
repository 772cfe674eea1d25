"""Attacks on networks, and labels that are not to be trusted."""
