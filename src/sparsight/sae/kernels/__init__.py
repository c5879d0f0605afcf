"""The training step's own kernels: what matrix products leave over, for each kind of device, and their plain form."""
