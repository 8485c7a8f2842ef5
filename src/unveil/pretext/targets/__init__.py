"""Frozen teachers: what each hidden patch should become."""
