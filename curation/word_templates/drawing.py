"""What every template needs: its record, the register of templates, and words to draw from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from random import Random

Number = int | Fraction


@dataclass(frozen=True)
class Worked:
    """A question, the sentences of its solution, and its exact answer."""

    question: str
    steps: tuple[str, ...]
    answer: Number


@dataclass(frozen=True)
class Template:
    """A kind of problem: its difficulty from 1 to 3, and what makes one."""

    difficulty: int
    make: Callable[[Random], Worked]


TEMPLATES: dict[str, Template] = {}


def template(difficulty: int) -> Callable[[Callable[[Random], Worked]], Callable[[Random], Worked]]:
    """Register a function under its name as a template of the stated difficulty."""

    def register(make: Callable[[Random], Worked]) -> Callable[[Random], Worked]:
        TEMPLATES[make.__name__.lstrip("_")] = Template(difficulty, make)
        return make

    return register


def _words(*lines: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(word for line in lines for word in line.split(separator))


PEOPLE = _words(
    "Ada Amir Anna Aya Bao Ben Carla Chen Chioma Clara Dana Deepa Diego Elif Emma Esra Farah Felix Fatima",
    "Gita Hana Hugo Ines Ivan Jada Jonas Kai Kofi Lara Leila Liam Lin Luca Maya Mei Milan Mina Nadia Nia",
    "Noor Olga Omar Pablo Petra Priya Quinn Rafa Rosa Ruth Sami Sara Sven Tariq Tessa Uma Vera Wei Yara",
    "Yusuf Zoe",
)
THINGS = _words(
    "apples beads books bottles bricks buttons candles cards coins cookies crayons cups eggs envelopes",
    "erasers figs flags forks jars keys kites lemons magnets marbles melons mugs nails notebooks nuts",
    "olives oranges pears pebbles pencils pens plates plums postcards radishes ribbons rings scarves",
    "seeds shells socks spoons stamps stickers stones tiles tomatoes tulips",
)
PLACES = _words(
    "the bakery|the bookshop|the school|the library|the market|the museum|the workshop|the garden",
    "the farm|the harbour|the station|the clinic|the club|the hotel|the kitchen|the office|the park",
    separator="|",
)
COLOURS = _words("red blue green white black yellow orange purple")


def draw_people(random: Random, count: int) -> list[str]:
    """Different names."""
    return random.sample(PEOPLE, count)


def one_of(random: Random, *wordings: str) -> str:
    """One of several wordings, all of which name the numbers in the same order."""
    return random.choice(wordings)
