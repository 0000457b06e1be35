"""The night shift: a day's studies found, pulled, drafted, delivered and accounted for, without a hand.

One loop, whoever starts it: `mla-med night run`, the schedule of `mla-med serve`, or a Prefect flow.
Nothing here knows Prefect or Dask; what is true of a study stands in the ledger alone.
"""
