"""The tables of the ledger. Times are seconds since 1970 (UTC).

jobs      a study, or a revision of it, on its way from discovery to delivery
outbox    one document for one destination: its final bytes, sealed, and how far it is
events    append-only: every transition, with a reason code and no PHI
breakers  whether a destination is being spared for the moment
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData()

# SQLite counts up by itself only in a column of type INTEGER
COUNTER = BigInteger().with_variant(Integer, "sqlite")

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("study_hash", String(64), nullable=False, index=True),
    Column("job_key", String(64), unique=True),  # hashed; what makes a second draft of the same work none
    Column("state", String(16), nullable=False, index=True),
    Column("reason", String(64), nullable=False, default=""),
    Column("instances", Integer, nullable=False, default=0),  # as the PACS counted last
    Column("counted_at", Double, nullable=False, default=0.0),  # since when it counts as many
    Column("own_instances", Integer, nullable=False, default=0),  # as were received here
    Column("revises", String(32), ForeignKey("jobs.id")),
    Column("sealed", LargeBinary, nullable=False),  # the study UID
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.id"), nullable=False, index=True),
    Column("destination", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("uid_hash", String(64), nullable=False),
    Column("digest", String(64), nullable=False),  # keyed, of the final bytes
    Column("sealed", LargeBinary),  # UID and final bytes; none once they are not needed any more
    Column("size_bytes", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(64), nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", Double, nullable=False),
    Column("deadline_at", Double, nullable=False),
    Column("owner", String(64), nullable=False, default=""),
    Column("leased_until", Double, nullable=False, default=0.0),
    Column("fence", Integer, nullable=False, default=0),  # counts leases: an older one may not record
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    # a UID names one content at a destination, for ever
    UniqueConstraint("destination", "uid_hash", name="one_content_per_uid"),
    Index("due", "destination", "state", "next_at"),
)

events = Table(
    "events",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("job_id", String(32), nullable=False, index=True),
    Column("document_id", String(32)),
    Column("event", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(64), nullable=False, default=""),
    Column("fence", Integer, nullable=False, default=0),
)

breakers = Table(
    "breakers",
    metadata,
    Column("destination", String(64), primary_key=True),
    Column("failures", Integer, nullable=False, default=0),
    Column("open_until", Double, nullable=False, default=0.0),
    Column("period_s", Double, nullable=False, default=0.0),  # 0: closed
    Column("reason", String(64), nullable=False, default="", server_default=""),  # why it does not let us in
)
