// In the place of what no page of ours reads.
