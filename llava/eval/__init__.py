"""Evaluation: answer generators, scorers, judges and the report. Modules with upstream's names are thin programs."""
