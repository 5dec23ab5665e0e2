"""Damage to a snapshot, told apart from a snapshot that is whole and does not fit."""

from __future__ import annotations

from shoal.errors import SnapshotError


class Damage(SnapshotError):
    """A file of a snapshot is missing, cut short or changed; the message names it and says which."""
