"""What the figures of `plots.runs` and `plots.training` share: axes, cells, curves, captions, styles. Not public."""
