"""Figures of one run, of several, or of what an evaluation measured. Each file holds the public function of its name."""
