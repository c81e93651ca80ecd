"""Benchmarks: pawand as its users start it, beside a floor that no server on Tornado can go below."""
