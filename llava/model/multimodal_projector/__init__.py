"""Vision-language connectors.

This package is self-contained: it imports torch and itself only, by relative imports, and needs nothing newer than
Python 3.10 and torch 2.0 (`torch.compile` on the connectors that rank patches: torch 2.1). It does not know the model
classes that use it, so it can be copied into another code base.
"""
