"""The independent reader behind `verify`: it proves an output against its plan.

Imports `errors` and nothing else of ours, so that no mistake of the writer is repeated in the proof.
"""
