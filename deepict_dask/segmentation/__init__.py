"""Tomogram in, score map out: a network applied window by window, equal to the whole at once."""
