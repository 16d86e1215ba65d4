"""Which times a question names, in English: dates, months, years, seasons, weekdays, and times counted from now.

`May` and `March` are also words, so a month must stand with a year or a day, or behind a word such as `in` or `last`.
Times are UTC; seasons are those of the northern half of the earth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy import bool_, float32, float64, int64
from numpy.typing import NDArray

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SEASONS = {
    "spring": frozenset((3, 4, 5)),
    "summer": frozenset((6, 7, 8)),
    "autumn": frozenset((9, 10, 11)),
    "fall": frozenset((9, 10, 11)),
    "winter": frozenset((12, 1, 2)),
}
TEXT_LIMIT_CHARS = 1000
TOLD_LATER_DAYS = 7
_DAY_S = 86_400

_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_YEAR = r"(?P<year>(?:19|20)\d\d)\b"
_IN = r"\b(?:in|during|of|since|until|by|last|this|early|mid|late|on|around|before|after)\s+(?:the\s+)?"
_DATE = re.compile(r"\b(?P<year>(?:19|20)\d\d)-(?P<number>\d\d)(?:-(?P<day>\d\d))?\b")
_DAY_FIRST = re.compile(rf"\b(?P<day>\d\d?)(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?", re.IGNORECASE)
_MONTH_FIRST = re.compile(
    rf"\b{_MONTH}\s+(?P<day>\d\d?)(?:st|nd|rd|th)?\b(?:,?\s+{_YEAR})?", re.IGNORECASE
)  # fmt: skip
_MONTH_AND_YEAR = re.compile(rf"\b{_MONTH},?\s+(?:of\s+)?{_YEAR}", re.IGNORECASE)
_MONTH_ALONE = re.compile(rf"{_IN}{_MONTH}(?!\s*\d)", re.IGNORECASE)
_SEASON = re.compile(
    rf"{_IN}(?P<season>spring|summer|autumn|fall|winter)\b(?:\s+(?:of\s+)?{_YEAR})?", re.IGNORECASE
)  # fmt: skip
_YEAR_ALONE = re.compile(rf"{_IN}{_YEAR}(?!-)", re.IGNORECASE)
_WEEKDAY = re.compile(
    r"\b(?:on|last)\s+(?P<weekday>mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)day", re.IGNORECASE
)
_NEAR = re.compile(r"\b(?P<near>yesterday|today|(?:last|this)\s+(?:week|month|year))\b", re.IGNORECASE)
_AGO = re.compile(
    r"\b(?P<count>\d{1,3}|an?|two|three|four|five|six)\s+(?P<unit>day|week|month|year)s?\s+ago\b", re.IGNORECASE
)
_COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_UNIT_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What a day must be, as far as it is said; `first` and `last` are days since 1970, both included."""

    year: int | None = None
    months: frozenset[int] = frozenset()
    day: int | None = None
    weekday: int | None = None
    first: int | None = None
    last: int | None = None

    def hold(self, days: NDArray[int64]) -> NDArray[bool_]:
        """Return which *days* since 1970 are such."""
        dates = days.astype("datetime64[D]")
        months = dates.astype("datetime64[M]")
        held = np.ones(len(days), dtype=bool)
        if self.year is not None:
            held &= dates.astype("datetime64[Y]").astype(int64) + 1970 == self.year
        if self.months:
            held &= np.isin(months.astype(int64) % 12 + 1, sorted(self.months))
        if self.day is not None:
            held &= (dates - months).astype(int64) + 1 == self.day
        if self.weekday is not None:
            held &= (days + 3) % 7 == self.weekday  # 1970 began on a Thursday
        if self.first is not None and self.last is not None:
            held &= (days >= self.first) & (days <= self.last)
        return held


def times_in(text: str, now_s: float) -> tuple[Times, ...]:
    """Return the times that *text* names, each once. *now_s*, UTC, is what `last week` is counted from."""
    return tuple(dict.fromkeys(_found(text[:TEXT_LIMIT_CHARS], now_s)))


def told_in(times: Sequence[Times], at_s: NDArray[float64]) -> NDArray[float32]:
    """Return 1 for what happened in one of *times*, half of it for what was told up to a week later, else 0."""
    days, place = np.unique(np.floor(at_s / _DAY_S).astype(int64), return_inverse=True)
    told = np.zeros(len(days), dtype=float32)
    for time in times:
        later = np.any([time.hold(days - after) for after in range(1, TOLD_LATER_DAYS + 1)], axis=0)
        told = np.maximum(told, np.where(time.hold(days), float32(1), float32(0.5) * later))
    return told[place].astype(float32)


def _found(text: str, now_s: float) -> Iterator[Times]:
    for pattern in (_DATE, _DAY_FIRST, _MONTH_FIRST, _MONTH_AND_YEAR, _MONTH_ALONE, _SEASON, _YEAR_ALONE, _WEEKDAY):
        for found in pattern.finditer(text):
            yield from _said(found.groupdict())
        text = pattern.sub(" ", text)
    for found in _NEAR.finditer(text):
        yield _near(found["near"].lower(), now_s)
    for found in _AGO.finditer(text):
        unit = _UNIT_DAYS[found["unit"].lower()]
        count = _COUNTS.get(found["count"].lower()) or int(found["count"])
        day = int(now_s // _DAY_S) - count * unit
        yield Times(first=day - unit // 2, last=day + unit // 2)


def _said(parts: dict[str, str | None]) -> Iterator[Times]:
    year, day, number = (int(parts.get(name) or 0) or None for name in ("year", "day", "number"))
    months = frozenset({number}) if number else frozenset()
    if month := parts.get("month"):
        months = frozenset({MONTHS.index(month[:3].lower()) + 1})
    if season := parts.get("season"):
        months = SEASONS[season.lower()]
    weekday = parts.get("weekday")
    yield Times(
        year=year, months=months, day=day, weekday=WEEKDAYS.index(weekday[:3].lower()) if weekday else None
    )  # fmt: skip


def _near(word: str, now_s: float) -> Times:
    """Return the day, week, month or year that a word such as `last week` stands for."""
    today = datetime.fromtimestamp(now_s, UTC).date()
    which, _, unit = word.partition(" ")
    back = which in ("last", "yesterday")
    match unit.strip():
        case "week":
            begin = today - timedelta(days=today.weekday() + 7 * back)
            end = begin + timedelta(days=7)
        case "month":
            this = today.replace(day=1)
            begin = (this - timedelta(days=1)).replace(day=1) if back else this
            end = this if back else (this + timedelta(days=32)).replace(day=1)
        case "year":
            begin, end = date(today.year - back, 1, 1), date(today.year - back + 1, 1, 1)
        case _:
            begin = today - timedelta(days=int(back))
            end = begin + timedelta(days=1)
    return Times(first=_number_of(begin), last=_number_of(end) - 1)


def _number_of(day: date) -> int:
    return (day - date(1970, 1, 1)).days
