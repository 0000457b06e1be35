"""Steps from one form of the ledger to the next, run by Alembic when a ledger is opened."""
