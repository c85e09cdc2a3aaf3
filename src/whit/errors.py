"""Every error that whit raises on purpose.

    WhitError                   exit 1
    ├── UsageError              exit 2   an option or a combination of options that cannot be
    ├── DataError               exit 3   the rows: file, format, columns, too few, too long
    ├── BaseError               exit 4   the base: unknown, absent, damaged, not supported
    │   └── PullError           exit 9   a base could not be fetched
    ├── AdapterError            exit 5   the adapter file or folder
    │   ├── DamagedAdapter               truncated, wrong checksum, oversized, not an adapter
    │   ├── WrongBase                    made for another base
    │   └── WrongBasis                   made along another basis
    ├── TrainingError           exit 6   training cannot go on (NaN, nothing to learn from)
    ├── ScoreError              exit 7   a scorer or reward that fails
    ├── StorageError            exit 8   the disk: full, read-only, not permitted
    ├── ClusterError            exit 13  a Ray cluster: not reached, of another whit, or its workers lost
    └── Interrupted             exit 130 stopped by the user (143: by SIGTERM); state is saved

`whit eval` also answers with its verdict: 0 helped, 10 no worse, 11 harmed, 12 not enough data.
A message says what happened, where, and what to do. This module knows nothing else of whit.
"""

from __future__ import annotations


class WhitError(Exception):
    """Any failure that whit explains to its user."""

    exit_code = 1


class UsageError(WhitError):
    """An option, or a combination of options, that cannot be."""

    exit_code = 2


class DataError(WhitError):
    """Rows that cannot be used: names file, line or row id."""

    exit_code = 3


class BaseError(WhitError):
    """A base that is unknown, absent, damaged or of a kind that is not supported."""

    exit_code = 4


class PullError(BaseError):
    """A base that could not be fetched."""

    exit_code = 9


class AdapterError(WhitError):
    """An adapter that cannot be read or applied."""

    exit_code = 5


class DamagedAdapter(AdapterError):
    """Truncated, oversized, of a wrong checksum, or not an adapter at all."""


class WrongBase(AdapterError):
    """An adapter that was made for another base."""


class WrongBasis(AdapterError):
    """An adapter that was made along another basis."""


class TrainingError(WhitError):
    """Training cannot go on; the last good state is kept."""

    exit_code = 6


class ScoreError(WhitError):
    """A scorer or reward that raises, or answers with something that is no score."""

    exit_code = 7


class StorageError(WhitError):
    """A disk that is full, read-only or not permitted."""

    exit_code = 8


class ClusterError(WhitError):
    """A Ray cluster that is not reached, has another whit, or loses its workers."""

    exit_code = 13


class Interrupted(WhitError):
    """Stopped by the user; what was done so far is saved."""

    exit_code = 130
