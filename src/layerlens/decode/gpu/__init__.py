"""The backends of a GPU: "workspace", which writes logits to a buffer of bounded size, and "triton", which never writes them."""
