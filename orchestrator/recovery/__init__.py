"""What to do after a fault, and how many workers to run: decisions as pure functions.

They take facts and the time as arguments and return what should be done; the runners do it. So every decision is
tested without a cluster and without waiting.
"""
