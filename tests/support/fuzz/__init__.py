"""Cases made at random, one from each seed: a folder in which something is broken, and a command that meets it."""
