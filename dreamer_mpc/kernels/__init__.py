"""Fast forms of plain code: the recurrent cell, activations, convolutions, CUDA graphs."""
