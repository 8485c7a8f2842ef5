"""Released weights in and out: one file for each family, and a report of what was done with every tensor."""
