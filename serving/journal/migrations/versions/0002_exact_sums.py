"""The sums over errors become exact: texts of fractions in the place of floats."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the new columns with what the old ones had, and drop those."""
    for old, new in (("absolute", "absolute_errors"), ("squared", "squared_errors")):
        op.add_column("versions", sa.Column(new, sa.Text, nullable=False, server_default="0"))
        was = sa.column(old, sa.Float)
        # What a large error has overflowed, or left below zero when it was corrected, tells nothing.
        kept = sa.case((was.between(0, 1e300), sa.cast(was, sa.Text)), else_="0")
        op.execute(sa.update(sa.table("versions", sa.column(new))).values({new: kept}))
        op.drop_column("versions", old)
