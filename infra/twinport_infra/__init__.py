"""The room that finds, plans, creates and removes what Twinport needs on AWS; the only one that provisions.

It is empty: it comes with the deployment milestone.
"""
