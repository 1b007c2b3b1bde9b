"""When a run last spoke, by its own clock

Revision: 0002
Follows: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("last_sent_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "last_sent_at")
