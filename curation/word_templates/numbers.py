"""Divisors, multiples, equations and sequences."""

from __future__ import annotations

import math
from random import Random

from curation.word_templates.drawing import PEOPLE, THINGS, Worked, one_of, template


@template(2)
def _equal_bags(random: Random) -> Worked:
    (one, two), person = random.sample(THINGS, 2), random.choice(PEOPLE)
    common = random.randint(2, 18)
    a, b = (common * x for x in random.sample(range(2, 16), 2))
    question = one_of(
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


@template(2)
def _ringing_bells(random: Random) -> Worked:
    a, b = random.sample(range(4, 40), 2)
    question = one_of(
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


@template(1)
def _left_over(random: Random) -> Worked:
    person, thing = random.choice(PEOPLE), random.choice(THINGS)
    total, size = random.randint(50, 999), random.randint(3, 29)
    question = one_of(
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


@template(1)
def _linear_equation(random: Random) -> Worked:
    person, a, x, b = (
        random.choice(PEOPLE),
        random.randint(2, 19),
        random.randint(2, 60),
        random.randint(1, 99),
    )
    c = a * x + b
    question = one_of(
        random,
        f"Solve {a}x + {b} = {c} for x.",
        f"{person} thinks of a number, multiplies it by {a}, adds {b} and gets {c}. What is the number?",
    )
    steps = (f"Without the summand: {c} - {b} = {c - b}.", f"Divide: {c - b} / {a} = {x}.")
    return Worked(question, steps, x)


@template(2)
def _equation_two_sides(random: Random) -> Worked:
    x, c = random.randint(2, 40), random.randint(2, 12)
    a, b = c + random.randint(1, 12), random.randint(1, 60)
    d = (a - c) * x + b
    question = one_of(
        random,
        f"For which x is {a}x + {b} = {c}x + {d}?",
        f"A taxi firm asks {a} euros a kilometre and {b} euros to start, another {c} euros a kilometre "
        f"and {d} "
        f"euros to start. For how many kilometres do they cost the same?",
    )
    steps = (
        f"Take the smaller multiple away: {a} - {c} = {a - c}.",
        f"On the other side {d} - {b} = {d - b}.",
        f"So x is {d - b} / {a - c} = {x}.",
    )
    return Worked(question, steps, x)


@template(2)
def _arithmetic_term(random: Random) -> Worked:
    first, step, place = random.randint(1, 60), random.randint(2, 25), random.randint(8, 60)
    third = first + 2 * step
    question = one_of(
        random,
        f"A sequence goes {first}, {first + step}, {third} and so on, always by the same step. "
        f"What is term number {place}?",
        f"A hall has {first} seats in the first row, {first + step} in the second, {third} in the "
        f"third, and so "
        f"on. How many seats has row {place}?",
    )
    steps = (
        f"The step is {first + step} - {first} = {step}.",
        f"It is taken {place} - 1 = {place - 1} times.",
        f"The term is {first} + {place - 1} * {step} = {first + (place - 1) * step}.",
    )
    return Worked(question, steps, first + (place - 1) * step)


@template(3)
def _arithmetic_sum(random: Random) -> Worked:
    person, first = random.choice(PEOPLE), random.randint(1, 40)
    step, count = random.randint(1, 15), random.randint(5, 40)
    last = first + (count - 1) * step
    question = one_of(
        random,
        f"{person} saves {first} euros in the first week and {step} euros more in each week that follows. "
        f"How many euros are saved in {count} weeks?",
        f"What is the sum of the arithmetic sequence with first term {first}, step {step} and {count} terms?",
    )
    total = count * (first + last) // 2
    steps = (
        f"The last term is {first} + {count - 1} * {step} = {last}.",
        f"The sum is {count} * ({first} + {last}) / 2 = {total}.",
    )
    return Worked(question, steps, total)


@template(2)
def _geometric_term(random: Random) -> Worked:
    first, ratio, times = random.randint(1, 30), random.randint(2, 5), random.randint(2, 6)
    question = one_of(
        random,
        f"A number starts at {first} and is multiplied by {ratio} again and again. "
        f"What is it after {times} multiplications?",
        f"{first} people hear a story. Each hour the number of people who know it grows to {ratio} "
        f"times what "
        f"it was. How many know it after {times} hours?",
    )
    value, steps = first, []
    for _ in range(times):
        steps.append(f"{value} * {ratio} = {value * ratio}.")
        value *= ratio
    return Worked(question, tuple(steps), value)


@template(3)
def _last_digit(random: Random) -> Worked:
    base, power = random.randint(2, 99), random.randint(5, 99)
    question = one_of(
        random,
        f"What is the last digit of {base} to the power {power}?",
        f"The number {base} is multiplied by itself until there are {power} factors. "
        f"Which digit stands last in the product?",
    )
    digit = base % 10
    cycle = [digit]
    while (following := cycle[-1] * digit % 10) != cycle[0]:
        cycle.append(following)
    answer = cycle[(power - 1) % len(cycle)]
    steps = (
        f"Only the last digit {digit} matters.",
        f"Its powers end in {', '.join(map(str, cycle))} and then repeat.",
        f"The first of them stands at place 0, so the power {power} stands at {power} - 1 = {power - 1}.",
        f"Without whole cycles of {len(cycle)} that is {power - 1} - {(power - 1) // len(cycle)} "
        f"* {len(cycle)} = {(power - 1) % len(cycle)}, where the digit is {answer}.",
    )
    return Worked(question, steps, answer)


@template(2)
def _consecutive(random: Random) -> Worked:
    person, first, count = random.choice(PEOPLE), random.randint(2, 150), random.choice((3, 5, 7))
    middle = first + count // 2
    total = count * middle
    question = one_of(
        random,
        f"The sum of {count} consecutive whole numbers is {total}. What is the smallest of them?",
        f"{person} writes down {count} whole numbers in a row that add up to {total}. "
        f"With which number does {person} begin?",
    )
    steps = (
        f"The middle one is {total} / {count} = {middle}.",
        f"The smallest is {middle} - {count // 2} = {first}.",
    )
    return Worked(question, steps, first)


@template(3)
def _divisors(random: Random) -> Worked:
    person = random.choice(PEOPLE)
    primes = random.sample((2, 3, 5, 7, 11), 2)
    powers = [random.randint(1, 4), random.randint(1, 3)]
    number = primes[0] ** powers[0] * primes[1] ** powers[1] * random.choice((1, 13, 17))
    question = one_of(
        random,
        f"How many positive divisors does {number} have?",
        f"{person} wants to lay {number} tiles as a rectangle without gaps. "
        f"How many choices are there for the number of rows?",
    )
    factors: dict[int, int] = {}
    rest, prime = number, 2
    while rest > 1:
        while rest % prime == 0:
            factors[prime] = factors.get(prime, 0) + 1
            rest //= prime
        prime += 1
    product = " * ".join(" * ".join([str(prime)] * power) for prime, power in factors.items())
    choices = [power + 1 for power in factors.values()]
    count = math.prod(choices)
    steps = (
        f"The prime factors are {product} = {number}.",
        f"Each prime may be taken from zero times up to as often as it occurs: "
        f"{' * '.join(map(str, choices))} = {count}.",
    )
    return Worked(question, steps, count)
