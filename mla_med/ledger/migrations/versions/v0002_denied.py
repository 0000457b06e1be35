"""The second form: a breaker says why its destination does not let us in."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("breakers", sa.Column("reason", sa.String(64), nullable=False, server_default=""))
