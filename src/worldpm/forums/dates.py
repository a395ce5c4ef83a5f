"""Dates of forum dumps in UTC, without zone."""

from datetime import UTC, datetime


def from_iso(value: object) -> datetime | None:
    """The date of an ISO 8601 text, in UTC if it names no zone; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        date = datetime.fromisoformat(value)
    except ValueError:
        return None
    try:
        return date if date.tzinfo is None else date.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:  # the zone moves it before the year 1 or after the year 9999
        return None


def from_seconds(value: object) -> datetime | None:
    """The date of seconds since 1970, as a number or as text; None for anything else."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        return datetime.fromtimestamp(float(value), UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        # The last two come from numbers beyond the years that the platform supports.
        return None
