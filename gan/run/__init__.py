"""A run from start to end: its directory and state, what it shows, and how it ends."""
