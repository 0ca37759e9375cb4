"""`ferryman bench` and its subcommands: whom it asks and how. What measures, records and draws is `ferryman.bench`.

run            one call: opens, checks, measures, records, judges
options        what it is told
open, ready    whom it measures, opened; of whom it is known that they answer right
contenders, served, tensors    a bundle's variants and PyTorch here, a server's model, either with ready tensors
workload, scenarios, curves    how they are asked
progress, tables, report, diff    what people see
"""
