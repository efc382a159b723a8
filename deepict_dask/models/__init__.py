"""Networks, the files they are read from, and the registry that loads each of them once."""
