"""How Alembic reaches the data base: by the connection that `store.upgrade` gives."""

from alembic import context
from sqlmodel import SQLModel

from app import store

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
)
assert store.STATES  # the tables are known by importing it
with context.begin_transaction():
    context.run_migrations()
