"""Templates of mathematics word problems: each draws numbers and names and solves the problem exactly."""

from __future__ import annotations

import math
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


def _template(difficulty: int) -> Callable[[Callable[[Random], Worked]], Callable[[Random], Worked]]:
    def register(make: Callable[[Random], Worked]) -> Callable[[Random], Worked]:
        TEMPLATES[make.__name__.lstrip("_")] = Template(difficulty, make)
        return make

    return register


_PEOPLE = (
    "Ada Amir Anna Aya Bao Ben Carla Chen Chioma Clara Dana Deepa Diego Elif Emma Esra Farah Felix Fatima "
    "Gita Hana Hugo Ines Ivan Jada Jonas Kai Kofi Lara Leila Liam Lin Luca Maya Mei Milan Mina Nadia Nia Noor "
    "Olga Omar Pablo Petra Priya Quinn Rafa Rosa Ruth Sami Sara Sven Tariq Tessa Uma Vera Wei Yara Yusuf Zoe"
).split()
_THINGS = (
    "apples beads books bottles bricks buttons candles cards coins cookies crayons cups eggs envelopes "
    "erasers figs flags forks jars keys kites lemons magnets marbles melons mugs nails notebooks nuts olives "
    "oranges pears pebbles pencils pens plates plums postcards radishes ribbons rings scarves seeds shells "
    "socks spoons stamps stickers stones tiles tomatoes tulips"
).split()
_PLACES = (
    "the bakery|the bookshop|the school|the library|the market|the museum|the workshop|the garden|the farm|"
    "the harbour|the station|the clinic|the club|the hotel|the kitchen|the office|the park|the theatre"
).split("|")
_COLOURS = "red blue green white black yellow orange purple".split()


def _people(random: Random, count: int) -> list[str]:
    return random.sample(_PEOPLE, count)


def _one_of(random: Random, *wordings: str) -> str:
    return random.choice(wordings)


@_template(1)
def _give_and_get(random: Random) -> Worked:
    (a, b), thing = _people(random, 2), random.choice(_THINGS)
    start, given, bought = random.randint(20, 90), random.randint(2, 19), random.randint(2, 60)
    question = _one_of(
        random,
        f"{a} has {start} {thing}, gives {given} to {b} and then buys {bought} more. "
        f"How many {thing} does {a} have now?",
        f"There are {start} {thing} in a box. {b} takes out {given}, and {a} puts in {bought}. "
        f"How many {thing} are in the box then?",
    )
    left = start - given
    steps = (f"After the first change {start} - {given} = {left} {thing} are left.",)
    return Worked(question, (*steps, f"Then there are {left} + {bought} = {left + bought}."), left + bought)


@_template(1)
def _rows_and_rest(random: Random) -> Worked:
    a, thing = random.choice(_PEOPLE), random.choice(_THINGS)
    rows, each, extra = random.randint(3, 15), random.randint(4, 24), random.randint(1, 30)
    question = _one_of(
        random,
        f"{a} lays out {rows} rows of {each} {thing} and has {extra} left over. "
        f"How many {thing} does {a} have in all?",
        f"At {random.choice(_PLACES)} there are {rows} shelves with {each} {thing} on each, and {extra} more "
        f"on the floor. How many {thing} are there?",
    )
    product = rows * each
    steps = (f"{rows} times {each} is {rows} * {each} = {product}.",)
    return Worked(
        question, (*steps, f"With the rest: {product} + {extra} = {product + extra}."), product + extra
    )


@_template(1)
def _distance(random: Random) -> Worked:
    a, speed = random.choice(_PEOPLE), 2 * random.randint(2, 55)
    hours, half = random.randint(1, 9), random.randint(0, 1)
    minutes = 60 * hours + 30 * half
    question = _one_of(
        random,
        f"{a} travels at {speed} km per hour for {minutes} minutes. How many kilometres is that?",
        f"A bus drives at a steady {speed} km/h. How many kilometres does it cover in {minutes} minutes?",
    )
    time = Fraction(minutes, 60)
    answer = speed * time
    steps = (
        f"In hours the time is {minutes}/60 = {time}.",
        f"The distance is {speed} * {time} = {answer} km.",
    )
    return Worked(question, steps, answer)


@_template(2)
def _meeting_trains(random: Random) -> Worked:
    first, second, hours = random.randint(40, 120), random.randint(40, 120), random.randint(2, 8)
    apart = (first + second) * hours
    question = _one_of(
        random,
        f"Two trains start at the same time {apart} km apart and drive towards each other at {first} km/h and "
        f"{second} km/h. After how many hours do they meet?",
        f"The distance between two towns is {apart} km. A car leaves one town at {first} km/h, and a lorry the "
        f"other at {second} km/h, towards the car. How many hours pass until they meet?",
    )
    together = first + second
    steps = (
        f"Each hour they come {first} + {second} = {together} km nearer.",
        f"They meet after {apart} / {together} = {hours} hours.",
    )
    return Worked(question, steps, hours)


@_template(3)
def _work_together(random: Random) -> Worked:
    (a, b), task = _people(random, 2), random.choice(("paint a fence", "sort the post", "clean the hall"))
    first, second = random.sample(range(2, 25), 2)
    question = _one_of(
        random,
        f"{a} can {task} in {first} hours and {b} in {second} hours. How many hours do they need together?",
        f"One pump fills a pool in {first} hours, another in {second} hours. "
        f"How many hours do both need to fill it together?",
    )
    rate = Fraction(1, first) + Fraction(1, second)
    steps = (
        f"In one hour they do 1/{first} + 1/{second} = {rate} of the work.",
        f"The whole takes 1 / ({rate}) = {1 / rate} hours.",
    )
    return Worked(question, steps, 1 / rate)


@_template(1)
def _unit_price(random: Random) -> Worked:
    a, thing = random.choice(_PEOPLE), random.choice(_THINGS)
    count, price, wanted = random.randint(2, 12), random.randint(2, 19), random.randint(3, 40)
    total = count * price
    question = _one_of(
        random,
        f"{count} {thing} cost {total} euros. How many euros do {wanted} {thing} cost at the same price?",
        f"{a} paid for {count} {thing} {total} dollars in all. What would {wanted} of them cost in dollars?",
    )
    steps = (
        f"One costs {total} / {count} = {price}.",
        f"So {wanted} cost {wanted} * {price} = {wanted * price}.",
    )
    return Worked(question, steps, wanted * price)


@_template(1)
def _change(random: Random) -> Worked:
    a, (one, two) = random.choice(_PEOPLE), random.sample(_THINGS, 2)
    n, p, m, q = (random.randint(2, 9) for _ in range(4))
    cost = n * p + m * q
    note = 50 * (cost // 50 + 1)
    question = (
        f"{a} buys {n} {one} for {p} euros each and {m} {two} for {q} euros each"
        + _one_of(random, f", and pays with {note} euros. ", f". {a} hands over {note} euros. ")
        + "How many euros of change are due?"
    )
    steps = (
        f"The {one} cost {n} * {p} = {n * p} and the {two} cost {m} * {q} = {m * q}.",
        f"Together that is {n * p} + {m * q} = {cost}.",
        f"The change is {note} - {cost} = {note - cost}.",
    )
    return Worked(question, steps, note - cost)


@_template(2)
def _discount(random: Random) -> Worked:
    price, percent = 20 * random.randint(2, 60), 5 * random.randint(1, 15)
    thing = random.choice(("coat", "lamp", "bicycle", "radio", "table", "tent", "camera", "printer"))
    question = _one_of(
        random,
        f"A {thing} that cost {price} euros is sold with {percent} % off. How many euros does it cost now?",
        f"The price of a {thing}, {price} euros, is lowered by {percent} %. What is the new price in euros?",
    )
    off = price * percent // 100
    steps = (
        f"{percent} % of {price} is {price} * {percent}/100 = {off}.",
        f"The new price is {price} - {off} = {price - off}.",
    )
    return Worked(question, steps, price - off)


@_template(2)
def _percent_change(random: Random) -> Worked:
    place, base, percent = random.choice(_PLACES), 100 * random.randint(1, 40), random.randint(1, 90)
    new = base + base * percent // 100
    question = _one_of(
        random,
        f"The number of visitors to {place} rose from {base} to {new}. By how many percent did it rise?",
        f"Last year {place} spent {base} euros on repairs, this year {new}. What is the increase in percent?",
    )
    steps = (
        f"The increase is {new} - {base} = {new - base}.",
        f"As a share of the start that is {new - base}/{base} = {Fraction(new - base, base)}.",
        f"In percent: 100 * {new - base} / {base} = {percent}.",
    )
    return Worked(question, steps, percent)


@_template(2)
def _simple_interest(random: Random) -> Worked:
    a, capital, rate, years = (
        random.choice(_PEOPLE),
        100 * random.randint(2, 90),
        random.randint(1, 9),
        random.randint(2, 9),
    )
    question = _one_of(
        random,
        f"{a} lends {capital} euros at {rate} % simple interest a year. "
        f"How many euros are owed after {years} years?",
        f"A fund of {capital} euros earns {rate} % of its first value each year. "
        f"How many euros is it worth after {years} years?",
    )
    yearly = capital * rate // 100
    steps = (
        f"One year brings {capital} * {rate}/100 = {yearly}.",
        f"In {years} years that is {years} * {yearly} = {years * yearly}.",
        f"In all {capital} + {years * yearly} = {capital + years * yearly}.",
    )
    return Worked(question, steps, capital + years * yearly)


@_template(3)
def _compound_growth(random: Random) -> Worked:
    start, percent, years = (
        1000 * random.randint(1, 40),
        random.choice((10, 20, 30, 50)),
        random.randint(2, 3),
    )
    question = _one_of(
        random,
        f"A town of {start} people grows by {percent} % each year. How many people live there "
        f"after {years} years?",
        f"A culture has {start} cells and gains {percent} % an hour. How many cells are there "
        f"after {years} hours?",
    )
    value, steps = start, []
    for _ in range(years):
        after = value * (100 + percent) // 100
        steps.append(f"{value} * {100 + percent}/100 = {after}.")
        value = after
    return Worked(question, (f"Each time the number is multiplied by {100 + percent}/100.", *steps), value)


@_template(2)
def _share_ratio(random: Random) -> Worked:
    a, b, c = _people(random, 3)
    ratio = [random.randint(1, 9) for _ in range(3)]
    part = random.randint(3, 60)
    total = sum(ratio) * part
    question = _one_of(
        random,
        f"{a}, {b} and {c} share {total} euros in the ratio {ratio[0]} : {ratio[1]} : {ratio[2]}. "
        f"How many euros does {b} get?",
        f"A paint of {total} grams mixes {a}'s, {b}'s and {c}'s colours as {ratio[0]} to {ratio[1]} to "
        f"{ratio[2]}. How many grams are of {b}'s colour?",
    )
    parts = sum(ratio)
    steps = (
        f"There are {ratio[0]} + {ratio[1]} + {ratio[2]} = {parts} parts.",
        f"One part is {total} / {parts} = {part}.",
        f"{b} has {ratio[1]} * {part} = {ratio[1] * part}.",
    )
    return Worked(question, steps, ratio[1] * part)


@_template(2)
def _ages(random: Random) -> Worked:
    (a, b), times, young, later = (
        _people(random, 2),
        random.randint(2, 6),
        random.randint(3, 14),
        random.randint(1, 15),
    )
    total = (times + 1) * young + 2 * later
    question = _one_of(
        random,
        f"{a} is {times} times as old as {b}. In {later} years their ages will add up to {total}. "
        f"How old is {b} now?",
        f"An oak is {times} times as old as a birch, and {later} years from now both together will be "
        f"{total} years old. How old is the birch now?",
    )
    now = total - 2 * later
    steps = (
        f"Today the ages add up to {total} - 2 * {later} = {now}.",
        f"That is {times} + 1 = {times + 1} times the younger age.",
        f"So the younger age is {now} / {times + 1} = {young}.",
    )
    return Worked(question, steps, young)


@_template(2)
def _rectangle_area(random: Random) -> Worked:
    place, width, length = random.choice(_PLACES), random.randint(3, 60), random.randint(3, 60)
    around = 2 * (width + length)
    question = _one_of(
        random,
        f"The fence around a rectangular field of {place} is {around} m long, and one side measures {width} m. "
        f"What is the area in square metres?",
        f"A rectangle has perimeter {around} cm and width {width} cm. What is its area in square centimetres?",
    )
    steps = (
        f"Half the way around is {around} / 2 = {around // 2}.",
        f"The other side is {around // 2} - {width} = {length}.",
        f"The area is {width} * {length} = {width * length}.",
    )
    return Worked(question, steps, width * length)


@_template(1)
def _triangle_area(random: Random) -> Worked:
    base, height = random.randint(3, 80), random.randint(3, 80)
    question = _one_of(
        random,
        f"A triangular sail has a base of {base} dm and a height of {height} dm. "
        f"What is its area in square decimetres?",
        f"Find the area of a triangle with base {base} and height {height}.",
    )
    area = Fraction(base * height, 2)
    steps = (f"Base times height is {base} * {height} = {base * height}.",)
    return Worked(question, (*steps, f"Half of it is {base * height} / 2 = {area}."), area)


@_template(1)
def _box_volume(random: Random) -> Worked:
    a, b, c = (random.randint(2, 25) for _ in range(3))
    question = _one_of(
        random,
        f"A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume in cubic centimetres?",
        f"How many cubes of side one fill a block that measures {a} by {b} by {c}?",
    )
    steps = (f"The floor has {a} * {b} = {a * b}.", f"Times the height: {a * b} * {c} = {a * b * c}.")
    return Worked(question, steps, a * b * c)


@_template(3)
def _pythagoras(random: Random) -> Worked:
    m, scale = random.randint(2, 7), random.randint(1, 6)
    n = random.randint(1, m - 1)
    a, b, c = scale * (m * m - n * n), scale * 2 * m * n, scale * (m * m + n * n)
    person = random.choice(_PEOPLE)
    question = _one_of(
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


@_template(2)
def _equal_bags(random: Random) -> Worked:
    (one, two), person = random.sample(_THINGS, 2), random.choice(_PEOPLE)
    common = random.randint(2, 18)
    a, b = (common * x for x in random.sample(range(2, 16), 2))
    question = _one_of(
        random,
        f"{person} packs {a} {one} and {b} {two} into bags that are all alike, with nothing left over. "
        f"What is the greatest possible number of bags?",
        f"What is the greatest number of children among whom {a} {one} and {b} {two} can both be shared "
        f"equally?",
    )
    high, low = max(a, b), min(a, b)
    steps = ["The number sought is the greatest common divisor."]
    while low:
        steps.append(f"{high} = {high // low} * {low} + {high % low}.")
        high, low = low, high % low
    return Worked(question, (*steps, f"The last divisor is {high}."), high)


@_template(2)
def _ringing_bells(random: Random) -> Worked:
    a, b = random.sample(range(4, 40), 2)
    question = _one_of(
        random,
        f"One bell rings every {a} minutes and another every {b} minutes. They ring together now. "
        f"After how many minutes do they next ring together?",
        f"A red lamp flashes every {a} seconds, a green one every {b} seconds. Both have just flashed. "
        f"How many seconds pass until both flash at once again?",
    )
    common = math.gcd(a, b)
    steps = (
        f"The greatest common divisor of {a} and {b} is {common}.",
        f"The least common multiple is {a} * {b} / {common} = {a * b // common}.",
    )
    return Worked(question, steps, a * b // common)


@_template(1)
def _left_over(random: Random) -> Worked:
    person, thing = random.choice(_PEOPLE), random.choice(_THINGS)
    total, size = random.randint(50, 999), random.randint(3, 29)
    question = _one_of(
        random,
        f"{person} fills boxes from {total} {thing}, {size} to a box. How many {thing} are left over?",
        f"What is the remainder when {total} is divided by {size}?",
    )
    full = total // size
    steps = (
        f"{size} fits {full} times, since {full} * {size} = {full * size}.",
        f"What is left is {total} - {full * size} = {total % size}.",
    )
    return Worked(question, steps, total % size)


@_template(1)
def _linear_equation(random: Random) -> Worked:
    person, a, x, b = (
        random.choice(_PEOPLE),
        random.randint(2, 19),
        random.randint(2, 60),
        random.randint(1, 99),
    )
    c = a * x + b
    question = _one_of(
        random,
        f"Solve {a}x + {b} = {c} for x.",
        f"{person} thinks of a number, multiplies it by {a}, adds {b} and gets {c}. What is the number?",
    )
    steps = (f"Without the summand: {c} - {b} = {c - b}.", f"Divide: {c - b} / {a} = {x}.")
    return Worked(question, steps, x)


@_template(2)
def _equation_two_sides(random: Random) -> Worked:
    x, c = random.randint(2, 40), random.randint(2, 12)
    a, b = c + random.randint(1, 12), random.randint(1, 60)
    d = (a - c) * x + b
    question = _one_of(
        random,
        f"For which x is {a}x + {b} = {c}x + {d}?",
        f"A taxi firm asks {a} euros a kilometre and {b} euros to start, another {c} euros a kilometre and {d} "
        f"euros to start. For how many kilometres do they cost the same?",
    )
    steps = (
        f"Take the smaller multiple away: {a} - {c} = {a - c}.",
        f"On the other side {d} - {b} = {d - b}.",
        f"So x is {d - b} / {a - c} = {x}.",
    )
    return Worked(question, steps, x)


@_template(3)
def _two_kinds(random: Random) -> Worked:
    place = random.choice(_PLACES)
    low, high = sorted(random.sample(range(2, 25), 2))
    cheap, dear = random.randint(3, 80), random.randint(3, 80)
    count, total = cheap + dear, low * cheap + high * dear
    question = _one_of(
        random,
        f"Tickets at {place} cost {low} euros for children and {high} euros for adults. "
        f"{count} tickets were sold for {total} euros. How many were for adults?",
        f"Small boxes weigh {low} kg and large ones {high} kg. {count} boxes weigh {total} kg together. "
        f"How many are large?",
    )
    steps = (
        f"If all were of the smaller kind, the total would be {count} * {low} = {count * low}.",
        f"{total} - {count * low} = {total - count * low} is missing.",
        f"Each of the larger kind adds {high} - {low} = {high - low}.",
        f"So there are {total - count * low} / {high - low} = {dear} of them.",
    )
    return Worked(question, steps, dear)
