"""Answer question files with a model: queries, generation, and the answers file. The only room that loads torch."""
