"""Figures of training runs. Each file holds the public function of its name."""
