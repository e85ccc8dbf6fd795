"""The backends of a CPU: torch, torch.compile, and native (C++)."""
