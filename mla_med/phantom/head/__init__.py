"""A head that does not exist: its anatomy, what may be wrong with it, and what only looks so."""
