"""Score answers: one file per benchmark, and the parts that they share. Never loads torch or transformers."""
