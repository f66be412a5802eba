"""One file per language model family: assemble the inputs, then the parent class."""
