"""`make bench-targets`: the variants against the stock recipe, both measured in one run on this machine."""
