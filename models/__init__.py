"""Networks, losses and figures of merit: tensors in, tensors out; no paths, clock, network or environment."""
