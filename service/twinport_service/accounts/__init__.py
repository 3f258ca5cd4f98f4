"""Accounts: who may log in, how they prove it, and what each may do."""
