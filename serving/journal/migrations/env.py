"""Run by Alembic within the transaction of `database.upgrade`."""

from alembic import context

from serving.journal.database import VERSION_TABLE
from serving.journal.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
