"""What Alembic runs: on the connection that the ledger hands over, in its transaction."""

from alembic import context

from mla_med.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
