"""Areas, volumes, lengths and scales."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from curation.word_templates.drawing import PEOPLE, PLACES, Worked, one_of, template


@template(2)
def _rectangle_area(random: Random) -> Worked:
    place, width, length = random.choice(PLACES), random.randint(3, 60), random.randint(3, 60)
    around = 2 * (width + length)
    question = one_of(
        random,
        f"The fence around a rectangular field of {place} is {around} m long, and one side measures "
        f"{width} m. "
        f"What is the area in square metres?",
        f"A rectangle has perimeter {around} cm and width {width} cm. What is its area in square "
        f"centimetres?",
    )
    steps = (
        f"Half the way around is {around} / 2 = {around // 2}.",
        f"The other side is {around // 2} - {width} = {length}.",
        f"The area is {width} * {length} = {width * length}.",
    )
    return Worked(question, steps, width * length)


@template(1)
def _triangle_area(random: Random) -> Worked:
    base, height = random.randint(3, 80), random.randint(3, 80)
    question = one_of(
        random,
        f"A triangular sail has a base of {base} dm and a height of {height} dm. "
        f"What is its area in square decimetres?",
        f"Find the area of a triangle with base {base} and height {height}.",
    )
    area = Fraction(base * height, 2)
    steps = (f"Base times height is {base} * {height} = {base * height}.",)
    return Worked(question, (*steps, f"Half of it is {base * height} / 2 = {area}."), area)


@template(1)
def _box_volume(random: Random) -> Worked:
    a, b, c = (random.randint(2, 25) for _ in range(3))
    question = one_of(
        random,
        f"A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume in cubic centimetres?",
        f"How many cubes of side one fill a block that measures {a} by {b} by {c}?",
    )
    steps = (f"The floor has {a} * {b} = {a * b}.", f"Times the height: {a * b} * {c} = {a * b * c}.")
    return Worked(question, steps, a * b * c)


@template(3)
def _pythagoras(random: Random) -> Worked:
    m, scale = random.randint(2, 9), random.randint(1, 12)
    n = random.randint(1, m - 1)
    a, b, c = scale * (m * m - n * n), scale * 2 * m * n, scale * (m * m + n * n)
    person = random.choice(PEOPLE)
    question = one_of(
        random,
        f"The legs of a right triangle are {a} cm and {b} cm long. How many centimetres is the hypotenuse?",
        f"{person} walks {a} m east and then {b} m north. How many metres from the start is {person}?",
    )
    steps = (
        f"The squares are {a} * {a} = {a * a} and {b} * {b} = {b * b}.",
        f"Their sum is {a * a} + {b * b} = {c * c}.",
        f"Since {c} * {c} = {c * c}, the length is {c}.",
    )
    return Worked(question, steps, c)


@template(1)
def _map_scale(random: Random) -> Worked:
    scale, length = 1000 * random.randint(2, 200), random.randint(2, 40)
    question = one_of(
        random,
        f"On a map each centimetre stands for {scale} cm. Two villages are {length} cm apart on it. "
        f"How many metres apart are they?",
        f"A plan has the scale one to {scale}. A path on it is {length} cm long. "
        f"How many metres long is the path?",
    )
    full = scale * length
    steps = (
        f"In centimetres it is {scale} * {length} = {full}.",
        f"In metres: {full} / 100 = {full // 100}.",
    )
    return Worked(question, steps, full // 100)


@template(2)
def _frame(random: Random) -> Worked:
    width, length, border = random.randint(5, 50), random.randint(5, 50), random.randint(1, 6)
    question = one_of(
        random,
        f"A pool measures {width} m by {length} m. A path {border} m wide runs all around it. "
        f"What is the area of the path in square metres?",
        f"A picture of {width} cm by {length} cm has a frame that is {border} cm wide on every side. "
        f"What is the area of the frame in square centimetres?",
    )
    wide, long = width + 2 * border, length + 2 * border
    steps = (
        f"Outside it measures {width} + 2 * {border} = {wide} by {length} + 2 * {border} = {long}.",
        f"That is {wide} * {long} = {wide * long}, and inside {width} * {length} = {width * length}.",
        f"The difference is {wide * long} - {width * length} = {wide * long - width * length}.",
    )
    return Worked(question, steps, wide * long - width * length)
