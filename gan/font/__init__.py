"""A font out of a W-Net: prototypes and references in, outlines and a TrueType file out."""
