"""What a run will cost, from its configuration alone; and what a step costs on this very machine.

Parameters, arithmetic and memory (`cost`, `recipes`, `teachers`, `memory`, `plan`) are counted without torch, so that
`unveil plan` answers at once. `bench` and what it stands on measure.
"""
