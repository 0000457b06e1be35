"""What researchers have -> Pairs: a file for each form, named in `kinds.py`."""
