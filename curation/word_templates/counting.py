"""Probability and counting."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from curation.word_templates.drawing import COLOURS, PLACES, Worked, one_of, template


@template(1)
def _marble(random: Random) -> Worked:
    one, two, three = random.sample(COLOURS, 3)
    a, b, c = (random.randint(1, 20) for _ in range(3))
    question = one_of(
        random,
        f"A bag holds {a} {one}, {b} {two} and {c} {three} marbles. One is drawn without looking. "
        f"What is the probability that it is {two}?",
        f"There are {a} {one}, {b} {two} and {c} {three} socks in a drawer. What is the probability "
        f"that a sock "
        f"taken at random is {two}?",
    )
    total = a + b + c
    steps = (
        f"In all there are {a} + {b} + {c} = {total}.",
        f"The probability is {b} / {total} = {Fraction(b, total)}.",
    )
    return Worked(question, steps, Fraction(b, total))


@template(3)
def _two_draws(random: Random) -> Worked:
    one, two = random.sample(COLOURS, 2)
    a, b = random.randint(2, 16), random.randint(2, 16)
    question = one_of(
        random,
        f"An urn holds {a} {one} and {b} {two} balls. Two are drawn without putting the first back. "
        f"What is the probability that both are {one}?",
        f"From {a} {one} and {b} {two} cards, well shuffled, the top two are turned. "
        f"How likely is it that both are {one}?",
    )
    total = a + b
    answer = Fraction(a, total) * Fraction(a - 1, total - 1)
    steps = (
        f"For the first the chance is {a}/{total}, for the second then {a - 1}/{total - 1}.",
        f"Both: {a}/{total} * {a - 1}/{total - 1} = {answer}.",
    )
    return Worked(question, steps, answer)


@template(2)
def _handshakes(random: Random) -> Worked:
    place, people, groups = random.choice(PLACES), random.randint(4, 80), random.randint(2, 9)
    question = one_of(
        random,
        f"{people} people meet at {place} and each shakes hands with every other. The same happens on "
        f"{groups} "
        f"days. How many handshakes are there?",
        f"In a league of {people} teams every two teams play each other {groups} times a year. "
        f"How many games are there in a year?",
    )
    pairs = people * (people - 1) // 2
    steps = (
        f"There are {people} * {people - 1} / 2 = {pairs} pairs.",
        f"In all that is {pairs} * {groups} = {pairs * groups}.",
    )
    return Worked(question, steps, pairs * groups)


@template(2)
def _podium(random: Random) -> Worked:
    people, places = random.randint(4, 30), random.randint(2, 4)
    club = random.choice(PLACES)
    question = one_of(
        random,
        f"{people} runners race. In how many ways can the first {places} places be taken?",
        f"From {people} people at {club}, {places} different posts are to be filled, one person each. "
        f"How many ways are there?",
    )
    factors = [people - i for i in range(places)]
    steps = (
        f"For each place one person fewer is left: {', '.join(map(str, factors))}.",
        f"{' * '.join(map(str, factors))} = {math.prod(factors)}.",
    )
    return Worked(question, steps, math.prod(factors))


@template(3)
def _committee(random: Random) -> Worked:
    women, men = random.randint(3, 14), random.randint(2, 20)
    place = random.choice(PLACES)
    question = one_of(
        random,
        f"A group at {place} has {women} women and {men} men. In how many ways can two women and one man be "
        f"chosen?",
        f"A cook at {place} has {women} sorts of fruit and {men} sorts of nuts and wants two sorts of "
        f"fruit and "
        f"one of nuts. How many choices are there?",
    )
    pairs = women * (women - 1) // 2
    steps = (
        f"Two of {women}: {women} * {women - 1} / 2 = {pairs}.",
        f"With one of {men}: {pairs} * {men} = {pairs * men}.",
    )
    return Worked(question, steps, pairs * men)


@template(2)
def _dice_sum(random: Random) -> Worked:
    one, two = random.randint(4, 20), random.randint(4, 20)
    wanted = random.randint(2, one + two)
    question = one_of(
        random,
        f"A fair die with {one} sides and one with {two} sides, each numbered from one, are thrown together. "
        f"What is the probability that the sum is {wanted}?",
        f"One wheel shows the numbers from one to {one}, another those from one to {two}, all equally "
        f"likely. "
        f"Both are spun. How likely is it that the numbers add up to {wanted}?",
    )
    low, high = max(1, wanted - two), min(one, wanted - 1)
    ways = high - low + 1
    answer = Fraction(ways, one * two)
    steps = (
        f"The first can show from {low} to {high}, and the second then has one choice.",
        f"That is {high} - {low} + 1 = {ways} ways out of {one} * {two} = {one * two}.",
        f"The probability is {ways} / {one * two} = {answer}.",
    )
    return Worked(question, steps, answer)


@template(2)
def _codes(random: Random) -> Worked:
    letters, digits = random.randint(2, 26), random.randint(2, 10)
    signs, numbers = random.randint(2, 3), random.randint(2, 4)
    question = one_of(
        random,
        f"A code uses {letters} letters and {digits} digits. It has {signs} letters followed by {numbers} "
        f"digits, and repeats are allowed. How many codes are there?",
        f"Of {letters} colours and {digits} shapes a sign shows {signs} colours in order and then {numbers} "
        f"shapes in order, each as often as one likes. How many signs are possible?",
    )
    a, b = letters**signs, digits**numbers
    steps = (
        f"For the first part there are {' * '.join([str(letters)] * signs)} = {a}.",
        f"For the second part there are {' * '.join([str(digits)] * numbers)} = {b}.",
        f"Together {a} * {b} = {a * b}.",
    )
    return Worked(question, steps, a * b)
