"""The readout on a GPU: a workspace of logits, or a Triton kernel that never writes them."""
