"""Code generated from protos/ferryman/inference by `make protos`, for the server alone; never edited by hand.

A process can hold one definition of the package `inference`, and tritonclient or KServe bring theirs: nothing that a
user of `ferryman.Client` imports may import this.
"""
