"""What the framework costs, and what a machine reaches: paired measurements."""
