"""Drafts on a page for a radiologist: see why, change, accept or reject. Every draft stays preliminary and
unverified: the report of record is signed in the hospital's RIS."""
