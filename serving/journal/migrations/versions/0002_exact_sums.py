"""Store the sums of errors exactly, as fractions in text instead of floats."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Convert the old columns."""
    for old, new in (("absolute", "absolute_errors"), ("squared", "squared_errors")):
        op.add_column("versions", sa.Column(new, sa.Text, nullable=False, server_default="0"))
        was = sa.column(old, sa.Float)
        # A sum that overflowed, or that a correction left below zero, is useless.
        kept = sa.case((was.between(0, 1e300), sa.cast(was, sa.Text)), else_="0")
        op.execute(sa.update(sa.table("versions", sa.column(new))).values({new: kept}))
        op.drop_column("versions", old)
