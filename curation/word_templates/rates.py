"""Amounts that change, speeds, work and ages."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from curation.word_templates.drawing import PEOPLE, PLACES, THINGS, Worked, draw_people, one_of, template


@template(1)
def _give_and_get(random: Random) -> Worked:
    (a, b), thing = draw_people(random, 2), random.choice(THINGS)
    start, given, bought = random.randint(20, 90), random.randint(2, 19), random.randint(2, 60)
    question = one_of(
        random,
        f"{a} has {start} {thing}, gives {given} to {b} and then buys {bought} more. "
        f"How many {thing} does {a} have now?",
        f"There are {start} {thing} in a box. {b} takes out {given}, and {a} puts in {bought}. "
        f"How many {thing} are in the box then?",
    )
    left = start - given
    steps = (f"After the first change {start} - {given} = {left} {thing} are left.",)
    return Worked(question, (*steps, f"Then there are {left} + {bought} = {left + bought}."), left + bought)


@template(1)
def _rows_and_rest(random: Random) -> Worked:
    a, thing = random.choice(PEOPLE), random.choice(THINGS)
    rows, each, extra = random.randint(3, 15), random.randint(4, 24), random.randint(1, 30)
    question = one_of(
        random,
        f"{a} lays out {rows} rows of {each} {thing} and has {extra} left over. "
        f"How many {thing} does {a} have in all?",
        f"At {random.choice(PLACES)} there are {rows} shelves with {each} {thing} on each, and {extra} more "
        f"on the floor. How many {thing} are there?",
    )
    product = rows * each
    steps = (f"{rows} times {each} is {rows} * {each} = {product}.",)
    return Worked(
        question, (*steps, f"With the rest: {product} + {extra} = {product + extra}."), product + extra
    )


@template(1)
def _distance(random: Random) -> Worked:
    a, speed = random.choice(PEOPLE), 2 * random.randint(2, 55)
    hours, half = random.randint(1, 9), random.randint(0, 1)
    minutes = 60 * hours + 30 * half
    question = one_of(
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


@template(2)
def _meeting_trains(random: Random) -> Worked:
    first, second, hours = random.randint(40, 120), random.randint(40, 120), random.randint(2, 8)
    apart = (first + second) * hours
    question = one_of(
        random,
        f"Two trains start at the same time {apart} km apart and drive towards each other at {first} "
        f"km/h and "
        f"{second} km/h. After how many hours do they meet?",
        f"The distance between two towns is {apart} km. A car leaves one town at {first} km/h, and a "
        f"lorry the "
        f"other at {second} km/h, towards the car. How many hours pass until they meet?",
    )
    together = first + second
    steps = (
        f"Each hour they come {first} + {second} = {together} km nearer.",
        f"They meet after {apart} / {together} = {hours} hours.",
    )
    return Worked(question, steps, hours)


@template(3)
def _work_together(random: Random) -> Worked:
    (a, b), task = draw_people(random, 2), random.choice(("paint a fence", "sort the post", "clean the hall"))
    first, second = random.sample(range(2, 25), 2)
    question = one_of(
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


@template(3)
def _compound_growth(random: Random) -> Worked:
    start, percent, years = (
        1000 * random.randint(1, 40),
        random.choice((10, 20, 30, 50)),
        random.randint(2, 3),
    )
    question = one_of(
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


@template(2)
def _ages(random: Random) -> Worked:
    (a, b), times, young, later = (
        draw_people(random, 2),
        random.randint(2, 6),
        random.randint(3, 14),
        random.randint(1, 15),
    )
    total = (times + 1) * young + 2 * later
    question = one_of(
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


@template(1)
def _metres_per_second(random: Random) -> Worked:
    speed, seconds = 18 * random.randint(1, 20), random.randint(2, 59)
    what = random.choice(("train", "cyclist", "car", "falcon", "boat"))
    question = one_of(
        random,
        f"A {what} moves at {speed} km/h. How many metres does it cover in {seconds} seconds?",
        f"The speed of a {what} is {speed} kilometres per hour. How far, in metres, does it get in "
        f"{seconds} s?",
    )
    each = speed * 1000 // 3600
    steps = (
        f"In metres per second the speed is {speed} * 1000 / 3600 = {each}.",
        f"The way is {each} * {seconds} = {each * seconds} metres.",
    )
    return Worked(question, steps, each * seconds)


@template(2)
def _filling_tank(random: Random) -> Worked:
    inflow, outflow = random.randint(12, 60), random.randint(1, 11)
    minutes, start = random.randint(4, 50), random.randint(0, 90)
    volume = start + (inflow - outflow) * minutes
    question = one_of(
        random,
        f"A tank of {volume} litres holds {start} litres. Each minute {inflow} litres flow in and {outflow} "
        f"litres leak out. After how many minutes is it full?",
        f"A depot has room for {volume} crates, and {start} are there. Every day {inflow} arrive and "
        f"{outflow} "
        f"leave. After how many days is it full?",
    )
    gain, missing = inflow - outflow, volume - start
    steps = (
        f"Missing are {volume} - {start} = {missing}.",
        f"The gain is {inflow} - {outflow} = {gain} each time.",
        f"That takes {missing} / {gain} = {minutes}.",
    )
    return Worked(question, steps, minutes)


@template(1)
def _clock(random: Random) -> Worked:
    hour, minute, lasts = random.randint(0, 20), random.randint(0, 59), random.randint(5, 180)
    place = random.choice(PLACES)
    question = one_of(
        random,
        f"A meeting at {place} starts {hour} hours and {minute} minutes after midnight and lasts {lasts} "
        f"minutes. How many minutes after midnight does it end?",
        f"A bus leaves {place} when {hour} hours and {minute} minutes of the day are over and drives for "
        f"{lasts} minutes. How many minutes of the day are over when it arrives?",
    )
    start = 60 * hour + minute
    steps = (
        f"The start in minutes is {hour} * 60 + {minute} = {start}.",
        f"The end is {start} + {lasts} = {start + lasts}.",
    )
    return Worked(question, steps, start + lasts)


@template(2)
def _missing_score(random: Random) -> Worked:
    person, marks = random.choice(PEOPLE), [random.randint(40, 99) for _ in range(3)]
    mean = random.randint(max(50, (sum(marks) + 3) // 4), (sum(marks) + 100) // 4)
    last = 4 * mean - sum(marks)
    question = one_of(
        random,
        f"{person} scored {marks[0]}, {marks[1]} and {marks[2]} points in three tests. "
        f"What must the next score be for a mean of {mean}?",
        f"Three parcels weigh {marks[0]}, {marks[1]} and {marks[2]} kg. How many kilograms must one "
        f"more weigh "
        f"so that the mean is {mean} kg?",
    )
    so_far = sum(marks)
    steps = (
        f"A mean of {mean} over four needs 4 * {mean} = {4 * mean} in all.",
        f"So far there are {marks[0]} + {marks[1]} + {marks[2]} = {so_far}.",
        f"Missing is {4 * mean} - {so_far} = {last}.",
    )
    return Worked(question, steps, last)


@template(3)
def _mixture(random: Random) -> Worked:
    one, two = random.randint(1, 20), random.randint(1, 20)
    low, high = random.randint(1, 40), random.randint(41, 95)
    question = one_of(
        random,
        f"{one} litres of a {low} % salt solution are mixed with {two} litres of a {high} % one. "
        f"What is the concentration in percent?",
        f"A farmer mixes {one} kg of feed with {low} % protein and {two} kg with {high} %. "
        f"What percentage of protein does the mixture have?",
    )
    top, bottom = one * low + two * high, one + two
    answer = Fraction(top, bottom)
    steps = (
        f"Weighted, that is {one} * {low} + {two} * {high} = {top}.",
        f"The whole is {one} + {two} = {bottom}.",
        f"So the percentage is {top} / {bottom} = {answer}.",
    )
    return Worked(question, steps, answer)
