"""Bad input and damage end in one line and exit code 2."""
