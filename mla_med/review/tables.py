"""The tables of the review, in the ledger's database. Times are seconds since 1970 (UTC).

drafts     what there is to review: codes, counts and times, nothing of a patient
codes      which finding each draft states, to filter by
versions   every change of a draft, sealed with the site's key
decisions  who decided what, and the job of the revision that went out
outcomes   what became of each finding of a decided draft: what recalibration and the drift page count
users, sessions, audit    who may come in, who is in, who saw and did what; the audit can only be added to
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    event,
)

from mla_med.ledger.tables import COUNTER

metadata = MetaData()

drafts = Table(
    "review_drafts",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("rank", Integer, nullable=False),  # 0 critical, 1 something present, 2 nothing, 3 refused
    Column("examination", String(32), nullable=False),
    Column("language", String(8), nullable=False),
    Column("scanner", String(64), nullable=False),  # maker and model
    Column("subgroup", String(16), nullable=False),  # sex and twenty years of age: "F 60-79"
    Column("weights", String(64), nullable=False),
    Column("refusal", String(64), nullable=False),  # the reason code, where the gate refused
    Column("arrived_at", Double, nullable=False),
    Column("drafted_at", Double, nullable=False),
    Column("head", Integer, nullable=False),  # the newest version; 0: as drafted
    Column("opened_at", Double, nullable=False),
    Column("opened_by", String(64), nullable=False),
    Column("decided_at", Double, nullable=False),
    Column("decided_by", String(64), nullable=False),
    Column("updated_at", Double, nullable=False, index=True),
    Index("review_by_state", "state", "rank", "arrived_at", "job_id"),
    Index("review_by_rank", "rank", "arrived_at", "job_id"),
    Index("review_by_examination", "examination", "state", "rank", "arrived_at", "job_id"),
)

codes = Table(
    "review_codes",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("code", String(48), primary_key=True),
    Column("presence", String(16), nullable=False),
    Index("review_by_code", "code", "presence", "job_id"),
)

versions = Table(
    "review_versions",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("job_id", String(32), nullable=False),
    Column("number", Integer, nullable=False),
    Column("parent", Integer, nullable=False),  # what undoing it gives back
    Column("at", Double, nullable=False),
    Column("by", String(64), nullable=False),
    Column("what", String(64), nullable=False),  # "finding lung_nodule", "sentence 3", "undo 4"
    Column("sealed", LargeBinary, nullable=False),
    # two readers who change the same version: the second one is told
    UniqueConstraint("job_id", "number", name="review_one_version"),
)

decisions = Table(
    "review_decisions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("job_id", String(32), nullable=False, index=True),
    Column("at", Double, nullable=False, index=True),
    Column("by", String(64), nullable=False),
    Column("decision", String(16), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # the reviewer as DICOM names him, and his words
    Column("sent_at", Double, nullable=False),  # 0: its revision is not committed yet
    Column("revision_job", String(32), nullable=False),
    Column("examination", String(32), nullable=False),
    Column("scanner", String(64), nullable=False),
    Column("subgroup", String(16), nullable=False),
    Column("weights", String(64), nullable=False),
    Column("refusal", String(64), nullable=False),
    Column("drafted_at", Double, nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("revoked_at", Double, nullable=False),  # an administrator opened the draft again
)

outcomes = Table(
    "review_outcomes",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("decision_id", String(32), nullable=False, index=True),
    Column("at", Double, nullable=False),
    Column("code", String(48), nullable=False),
    Column("outcome", String(16), nullable=False),  # kept, changed, removed, added
    Column("drafted", String(16), nullable=False),  # presence
    Column("decided", String(16), nullable=False),
    Column("confidence", Double),  # of the draft's statement
    Column("examination", String(32), nullable=False),
    Column("weights", String(64), nullable=False),
    Column("scanner", String(64), nullable=False),
    Column("subgroup", String(16), nullable=False),
    Index("review_outcomes_of", "weights", "code", "at"),
)

users = Table(
    "review_users",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("display", String(128), nullable=False),  # Family^Given, as a revision names the reviewer
    Column("role", String(16), nullable=False),
    Column("secret", String(256), nullable=False),  # argon2id; empty: signs in elsewhere
    Column("disabled", Integer, nullable=False),
    Column("made_at", Double, nullable=False),
)

sessions = Table(
    "review_sessions",
    metadata,
    Column("token", String(64), primary_key=True),  # SHA-256 of the cookie: the table lets nobody in
    Column("name", String(64), nullable=False, index=True),
    Column("display", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("method", String(16), nullable=False),
    Column("csrf", String(64), nullable=False),
    Column("language", String(8), nullable=False),
    Column("made_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

audit = Table(
    "review_audit",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False, index=True),
    Column("who", String(64), nullable=False, index=True),
    Column("action", String(32), nullable=False),
    Column("job_id", String(32), nullable=False, index=True),
    Column("detail", String(64), nullable=False),
)

for _verb in ("UPDATE", "DELETE"):
    _only_added = DDL(
        f"CREATE TRIGGER IF NOT EXISTS review_audit_no_{_verb.lower()} BEFORE {_verb} ON review_audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
    )
    event.listen(audit, "after_create", _only_added.execute_if(dialect="sqlite"))
for _statement in (
    "CREATE FUNCTION review_audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit is append-only'; END $$",
    "CREATE TRIGGER review_audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON review_audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION review_audit_append_only()",
):
    event.listen(audit, "after_create", DDL(_statement).execute_if(dialect="postgresql"))
