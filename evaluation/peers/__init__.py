"""Our reader beside the readers that people use today, on the same files, in one run."""
