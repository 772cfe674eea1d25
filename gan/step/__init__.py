"""What a step is made of: turns, gradients, what may be skipped, recorded or cut in pieces."""
