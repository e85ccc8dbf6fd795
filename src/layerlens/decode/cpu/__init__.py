"""The readout on a CPU: torch, torch.compile, or C++."""
