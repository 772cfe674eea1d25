"""Images on disk and on their way to the device: stores, sources, samples, streams."""
