"""One file per job: paths and settings in, finished outputs out.

A job opens its inputs, checks them, plans blocks within the memory budget, lets the engine run an
op, and gives the output its name when all of it is written.
"""
