"""Fashion scenes: the sample set that ships with the package and serves every task without network."""
