"""What a run over a dataset notes, and what is read from it later."""
