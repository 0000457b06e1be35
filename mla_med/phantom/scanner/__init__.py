"""What is in a body -> what a scanner shows of it, and the files that it sends."""
