"""The journal's first tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    identity = sa.String(36).with_variant(UUID(as_uuid=False), "postgresql")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "versions",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("version", sa.String),
        sa.Column("model_id", sa.String),
        sa.Column("run_id", sa.String),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("task", sa.String),
        sa.Column("outputs", sa.Text, nullable=False),
        sa.Column("feedback_at", moment),
        sa.Column("feedback", sa.Integer, nullable=False, server_default="0"),
        sa.Column("classed", sa.Integer, nullable=False, server_default="0"),
        sa.Column("correct", sa.Integer, nullable=False, server_default="0"),
        sa.Column("measured", sa.Integer, nullable=False, server_default="0"),
        sa.Column("absolute", sa.Float, nullable=False, server_default="0"),
        sa.Column("squared", sa.Float, nullable=False, server_default="0"),
    )
    op.create_table(
        "predictions",
        sa.Column("id", identity, primary_key=True),
        sa.Column("at", moment, nullable=False),
        sa.Column("version", sa.BigInteger, sa.ForeignKey("versions.id"), nullable=False),
        sa.Column("protocol", sa.String, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("inputs", sa.Text, nullable=False),
        sa.Column("params", sa.Text),
        sa.Column("outputs", sa.Text, nullable=False),
        sa.Column("latency", sa.Float, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
    )
    op.create_table(
        "feedback",
        sa.Column(
            "prediction", identity, sa.ForeignKey("predictions.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("row", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("correct", sa.Boolean),
        sa.Column("error", sa.Float),
    )
