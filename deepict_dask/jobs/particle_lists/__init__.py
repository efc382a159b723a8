"""Work on particle lists alone."""
