"""Train and evaluate: one step, one evaluation, saved state, distribution, logs.

Import the submodules; the package itself imports nothing, so that a part costs only what it needs.
"""
