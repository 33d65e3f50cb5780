"""How a sentence of the toy corpus is put together: who does what, where, when and why.

An `Activity` ties a verb to the people who do it, the things it is done to, its places and its
purpose, so a hidden word can be told from the words around it: fishermen catch fish, and they do it
in the lake. A `Language` adds agreement, tense and word order; the patterns are the same for all.
"""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

TENSES = ("past", "present", "future")


def words(text: str) -> tuple[str, ...]:
    """Split a comma-separated list, in Unicode's composed form (NFC)."""
    return tuple(word.strip() for word in unicodedata.normalize("NFC", text).split(","))


def finish(text: str, mark: str = ".") -> str:
    """Capitalise the first letter and add the closing mark."""
    text = unicodedata.normalize("NFC", text)
    start = next(index for index, letter in enumerate(text) if letter.isalpha())
    return text[:start] + text[start].upper() + text[start + 1 :] + mark


@dataclass(frozen=True)
class Activity:
    """One verb with the people, things, places and purpose that go with it."""

    verb: str
    agents: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]
    purpose: str


def activity(verb: str, agents: str, objects: str, places: str, purpose: str) -> Activity:
    """Make an `Activity` from comma-separated lists."""
    (verb,), (purpose,) = words(verb), words(purpose)
    return Activity(verb, words(agents), words(objects), words(places), purpose)


def people(**agreement: str) -> dict[str, str]:
    """Map each person or group to the agreement it asks for, from one list per agreement."""
    return {agent: kind for kind, agents in agreement.items() for agent in words(agents)}


def when(past: str, present: str, future: str) -> dict[str, tuple[str, ...]]:
    """Map each tense to the expressions of time that go with it."""
    return {"past": words(past), "present": words(present), "future": words(future)}


class Language(ABC):
    """A language's words and its grammar, as far as the patterns need it."""

    activities: tuple[Activity, ...]
    agreement: Mapping[str, str]
    times: Mapping[str, tuple[str, ...]]
    destinations: tuple[str, ...]
    but: str

    @abstractmethod
    def clause(self, agent: str, verb: str, tense: str, thing: str) -> str:
        """Subject, verb and object; tense is one of `TENSES`, or "not" for what did not happen."""

    @abstractmethod
    def who(self, verb: str, tense: str, thing: str) -> str:
        """The beginning of the question who does something to a thing."""

    @abstractmethod
    def afterwards(self, agent: str, verb: str, thing: str, destination: str) -> str:
        """Somebody did something and then went somewhere."""

    @abstractmethod
    def purpose(self, agent: str, purpose: str) -> str:
        """The clause that says why, agreeing with the subject."""

    @abstractmethod
    def facts(self) -> Iterator[str]:
        """Sentences about what somebody owns (numbers) and what things are like (adjectives)."""

    @cached_property
    def patterns(self) -> tuple[tuple[str, ...], ...]:
        """Every distinct sentence of every pattern, one tuple a pattern."""
        every = (
            self._time_first(),
            self._time_last(),
            self._reasons(),
            self._negations(),
            self._questions(),
            self._sequences(),
            self._contrasts(),
            self.facts(),
        )
        seen: set[str] = set()
        distinct = []
        for pattern in every:
            new = tuple(sentence for sentence in dict.fromkeys(pattern) if sentence not in seen)
            seen.update(new)
            distinct.append(new)
        return tuple(distinct)

    def _events(self) -> Iterator[tuple[Activity, str, str, str, str]]:
        for act in self.activities:
            for agent, thing, tense in product(act.agents, act.objects, TENSES):
                for time in self.times[tense]:
                    yield act, agent, thing, tense, time

    def _time_first(self) -> Iterator[str]:
        for act, agent, thing, tense, time in self._events():
            for place in act.places:
                yield finish(f"{time} {self.clause(agent, act.verb, tense, thing)} {place}")

    def _time_last(self) -> Iterator[str]:
        for act, agent, thing, tense, time in self._events():
            for place in act.places:
                yield finish(f"{self.clause(agent, act.verb, tense, thing)} {place} {time}")

    def _reasons(self) -> Iterator[str]:
        for act, agent, thing, tense, time in self._events():
            what = self.clause(agent, act.verb, tense, thing)
            yield finish(f"{time} {what} {self.purpose(agent, act.purpose)}")

    def _negations(self) -> Iterator[str]:
        for act in self.activities:
            for agent, thing, time in product(act.agents, act.objects, self.times["past"]):
                for place in act.places:
                    what = self.clause(agent, act.verb, "not", f"{thing} {place}")
                    yield finish(f"{time} {what}")

    def _questions(self) -> Iterator[str]:
        for act in self.activities:
            for thing, place, tense in product(act.objects, act.places, TENSES):
                for time in self.times[tense]:
                    yield finish(f"{self.who(act.verb, tense, thing)} {place} {time}", "?")

    def _sequences(self) -> Iterator[str]:
        for index, act in enumerate(self.activities):
            for agent, thing, step in product(act.agents, act.objects, range(3)):
                where = self.destinations[(index + step) % len(self.destinations)]
                yield finish(self.afterwards(agent, act.verb, thing, where))

    def _contrasts(self) -> Iterator[str]:
        for index, first in enumerate(self.activities):
            second = self.activities[(index + 1) % len(self.activities)]
            left = tuple(product(first.agents, first.objects, TENSES))
            right = tuple(product(second.agents, second.objects))
            for agent, thing, tense in left:
                what = self.clause(agent, first.verb, tense, thing)
                for other, object_ in right[::2]:
                    if other != agent:
                        yield finish(
                            f"{what}{self.but}{self.clause(other, second.verb, tense, object_)}"
                        )
