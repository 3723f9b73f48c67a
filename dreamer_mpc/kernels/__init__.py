"""Fast implementations of the recurrent cell, activations and convolutions, and CUDA graphs."""
