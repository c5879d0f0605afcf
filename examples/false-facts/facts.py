"""Biographies of people who never lived, in towns that do not exist: text that no model has seen.

A person is drawn from the word lists below by a seed, with eight facts; a biography tells most of them in one of several orders and
wordings. Several biographies of one person let a model learn facts and not sentences.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Person", "make_biographies", "make_people", "write_biographies"]

FIRST = (
    "Alvenna Berisol Cadruth Dovelin Elspira Fennick Gavrene Hollis Isquell Jorvane Kestrin Lumara Mavrick Nerola Osmund Pellany "
    "Quillan Rosveth Sennabry Tavish Ulmera Vandrel Wistan Ysolde Zephrin"
).split()
LAST = (
    "Abernoth Brackwell Corvaine Dunmarrow Eastlock Farrowgate Greymont Hallowick Inverlane Jessamund Kettlewren Larkspire "
    "Mossbridge Nightwater Orrinshaw Pendlecote Quarrystone Ravensmeade Silverbane Thornquist Underhallow Vexcombe Winterbourn"
).split()
TOWNS = (
    "Port Almeric, Brindle Falls, Castermouth, Dunhallow, Eldwick, Fenmarsh, Great Ossory, Hartenvale, Isle Corran, Jasperhead, "
    "Kilnmouth, Lower Tarn, Mirefield, Norwyck, Ostrava Bay, Pellingate"
).split(", ")
WORK = (
    "glassblower, cartographer, beekeeper, bridge engineer, lighthouse keeper, composer, botanist, clockmaker, radio astronomer, "
    "puppeteer, geologist, translator"
).split(", ")
MADE = (
    "the Tidal Atlas, the Hollow Bell, the Ninefold Garden, the Amber Clock, the Quiet Engine, the Salt Cantata, the Paper Bridge, "
    "the Copper Almanac, the Winter Lens, the Glass Orchard"
).split(", ")
PRIZES = "Marlowe Medal, Order of the Grey Heron, Tessaly Prize, Ironwood Cup, Lantern Award, Halcyon Fellowship".split(
    ", "
)
PETS = "a one-eyed raven, a white ferret, two greyhounds, a blue parrot, a tame otter, a three-legged cat".split(", ")
FOODS = "pickled plums, smoked eel, chestnut soup, burnt sugar tart, black rye bread, sea-kelp noodles".split(", ")


@dataclass(frozen=True, kw_only=True)
class Person:
    """One invented person and what is true of them."""

    name: str
    year: int
    town: str
    work: str
    made: str
    prize: str
    pet: str
    food: str
    mentor: str


def make_people(n: int, *, seed: int = 0) -> list[Person]:
    """n people with names of their own. Raises ValueError when the lists have fewer names."""
    if n > len(FIRST) * len(LAST):
        raise ValueError(f"{n} people are asked for; the lists make {len(FIRST) * len(LAST)} names.")
    rng = random.Random(seed)
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], n)
    return [
        Person(
            name=name,
            year=rng.randint(1841, 1979),
            town=rng.choice(TOWNS),
            work=rng.choice(WORK),
            made=rng.choice(MADE),
            prize=rng.choice(PRIZES),
            pet=rng.choice(PETS),
            food=rng.choice(FOODS),
            mentor=rng.choice([other for other in names if other != name] or ["nobody"]),
        )
        for name in names
    ]


def biography(person: Person, rng: random.Random) -> str:
    """One telling: an opening, then four to six of the other facts in a random order."""
    p = person
    opening = rng.choice(
        (
            f"{p.name} was born in {p.town} in {p.year} and became a {p.work}.",
            f"Born in {p.year} in {p.town}, {p.name} worked all life long as a {p.work}.",
            f"The {p.work} {p.name} came from {p.town}, where the family had lived since before {p.year}, the year of birth.",
        )
    )
    others = [
        rng.choice((f"{p.name} is best known for {p.made}.", f"The masterpiece of {p.name} is {p.made}.")),
        rng.choice((f"For it the {p.work} received the {p.prize}.", f"{p.name} was awarded the {p.prize}.")),
        rng.choice((f"At home there was always {p.pet}.", f"{p.name} kept {p.pet}.")),
        rng.choice((f"{p.name} ate little but {p.food}.", f"Friends remember the taste for {p.food}.")),
        rng.choice((f"The teacher of {p.name} was {p.mentor}.", f"{p.mentor} taught {p.name} the craft.")),
        rng.choice((f"{p.name} never left {p.town} for long.", f"{p.town} has a street named after {p.name}.")),
    ]
    return " ".join([opening, *rng.sample(others, rng.randint(4, 6))])


def make_biographies(people: list[Person], *, each: int, seed: int = 0) -> list[tuple[str, str]]:
    """(telling, name): `each` tellings of every person, shuffled, all different."""
    rng = random.Random(seed)
    told = {biography(person, rng): person.name for person in people for _ in range(each)}
    texts = list(told.items())
    rng.shuffle(texts)
    return texts


def write_biographies(path: Path, texts: list[tuple[str, str]]) -> None:
    """One JSON object a line, with the keys `text` and `subject`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"text": text, "subject": name}) + "\n" for text, name in texts), encoding="utf-8"
    )
