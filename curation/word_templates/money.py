"""Prices, percentages, interest and shares."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from curation.word_templates.drawing import PEOPLE, PLACES, THINGS, Worked, draw_people, one_of, template


@template(1)
def _unit_price(random: Random) -> Worked:
    a, thing = random.choice(PEOPLE), random.choice(THINGS)
    count, price, wanted = random.randint(2, 12), random.randint(2, 19), random.randint(3, 40)
    total = count * price
    question = one_of(
        random,
        f"{count} {thing} cost {total} euros. How many euros do {wanted} {thing} cost at the same price?",
        f"{a} paid for {count} {thing} {total} dollars in all. What would {wanted} of them cost in dollars?",
    )
    steps = (
        f"One costs {total} / {count} = {price}.",
        f"So {wanted} cost {wanted} * {price} = {wanted * price}.",
    )
    return Worked(question, steps, wanted * price)


@template(1)
def _change(random: Random) -> Worked:
    a, (one, two) = random.choice(PEOPLE), random.sample(THINGS, 2)
    n, p, m, q = (random.randint(2, 9) for _ in range(4))
    cost = n * p + m * q
    note = 50 * (cost // 50 + 1)
    question = (
        f"{a} buys {n} {one} for {p} euros each and {m} {two} for {q} euros each"
        + one_of(random, f", and pays with {note} euros. ", f". {a} hands over {note} euros. ")
        + "How many euros of change are due?"
    )
    steps = (
        f"The {one} cost {n} * {p} = {n * p} and the {two} cost {m} * {q} = {m * q}.",
        f"Together that is {n * p} + {m * q} = {cost}.",
        f"The change is {note} - {cost} = {note - cost}.",
    )
    return Worked(question, steps, note - cost)


@template(2)
def _discount(random: Random) -> Worked:
    price, percent = 20 * random.randint(2, 60), 5 * random.randint(1, 15)
    thing = random.choice(("coat", "lamp", "bicycle", "radio", "table", "tent", "camera", "printer"))
    question = one_of(
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


@template(2)
def _percent_change(random: Random) -> Worked:
    place, base, percent = random.choice(PLACES), 100 * random.randint(1, 40), random.randint(1, 90)
    new = base + base * percent // 100
    question = one_of(
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


@template(2)
def _simple_interest(random: Random) -> Worked:
    a, capital, rate, years = (
        random.choice(PEOPLE),
        100 * random.randint(2, 90),
        random.randint(1, 9),
        random.randint(2, 9),
    )
    question = one_of(
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


@template(2)
def _share_ratio(random: Random) -> Worked:
    a, b, c = draw_people(random, 3)
    ratio = [random.randint(1, 9) for _ in range(3)]
    part = random.randint(3, 60)
    total = sum(ratio) * part
    question = one_of(
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


@template(3)
def _two_kinds(random: Random) -> Worked:
    place = random.choice(PLACES)
    low, high = sorted(random.sample(range(2, 25), 2))
    cheap, dear = random.randint(3, 80), random.randint(3, 80)
    count, total = cheap + dear, low * cheap + high * dear
    question = one_of(
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


@template(1)
def _exchange(random: Random) -> Worked:
    person, per, amount = random.choice(PEOPLE), random.randint(2, 30), random.randint(5, 400)
    fee = random.randint(2, 9)
    question = one_of(
        random,
        f"One euro is worth {per} crowns. {person} changes {amount} euros and pays a fee of {fee} crowns. "
        f"How many crowns does {person} get?",
        f"At {random.choice(PLACES)} a coupon buys {per} points. {person} brings {amount} coupons, and {fee} "
        f"points are kept as a charge. How many points does {person} get?",
    )
    full = per * amount
    steps = (f"Before the fee: {per} * {amount} = {full}.", f"After it: {full} - {fee} = {full - fee}.")
    return Worked(question, steps, full - fee)


@template(2)
def _fractions_spent(random: Random) -> Worked:
    person, b, d = random.choice(PEOPLE), random.randint(2, 6), random.randint(2, 6)
    a, c, unit = random.randint(1, b - 1), random.randint(1, d - 1), random.randint(2, 20)
    total = b * d * unit
    question = one_of(
        random,
        f"{person} has {total} euros and spends {a}/{b} of it on a ticket, then {c}/{d} of what remains on "
        f"food. How many euros are left?",
        f"Of {total} litres in a tank {a}/{b} is used on the first day and {c}/{d} of the rest on the "
        f"second. "
        f"How many litres are left?",
    )
    first = total * a // b
    rest = total - first
    second = rest * c // d
    steps = (
        f"First {total} * {a}/{b} = {first} goes, and {total} - {first} = {rest} remains.",
        f"Then {rest} * {c}/{d} = {second} goes.",
        f"What is left is {rest} - {second} = {rest - second}.",
    )
    return Worked(question, steps, rest - second)


@template(2)
def _profit(random: Random) -> Worked:
    person, thing, count = random.choice(PEOPLE), random.choice(THINGS), random.randint(5, 60)
    cost, gain, bad = random.randint(2, 20), random.randint(1, 15), random.randint(1, 4)
    price = cost + gain
    question = one_of(
        random,
        f"{person} buys {count} {thing} for {cost} euros each. {bad} of them are broken; the others are sold "
        f"for {price} euros each. What is the profit in euros, negative for a loss?",
        f"A shop orders {count} {thing} at {cost} euros apiece, cannot sell {bad} of them, and sells "
        f"the rest "
        f"at {price} euros apiece. How many euros does it earn, negative if it loses?",
    )
    spent, sold = count * cost, count - bad
    steps = (
        f"The cost is {count} * {cost} = {spent}.",
        f"Sold are {count} - {bad} = {sold}, which brings {sold} * {price} = {sold * price}.",
        f"The profit is {sold * price} - {spent} = {sold * price - spent}.",
    )
    return Worked(question, steps, sold * price - spent)
