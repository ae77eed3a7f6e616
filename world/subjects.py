"""Invented names, and the sums: the subjects of the tables that nobody wrote by hand."""

from __future__ import annotations

import random
from functools import cache
from itertools import product


def words(text: str) -> list[str]:
    return text.split()


ONSETS = words("b br d dr f fl g gr h j k kl l m n p pr r s st t tr v w z")
VOWELS = words("a e i o u")
MIDDLES = words("l ll m nd n nn r rr rt s v lv rv b d dr k")
ENDINGS = words("a o is en in el ia us on ar et ik")
SURNAMES = words("ander ford gate hollow kin low mere nett over ridge sby stone thorne ver vale wood yard croft dell "
                 "marsh")
TOWNS = words("bury wick ham stead haven mouth bridge ton combe worth")
TOOLS = words("dle ker mer zel pin tock ble ner gle rick")
TALE_ADJECTIVES = words("silver golden red little broken green magic heavy round shining wooden blue")
TALE_THINGS = words("kettle ring lantern drum key cup bell crown button spoon flute mirror purse boot lamp")
SURNAMES_ZH = "林陈黄周吴徐孙胡朱高何郭马罗梁宋郑谢韩唐"
GIVEN_ZH = "小明华丽强芳军敏静磊洋艳勇杰娟涛超霞平刚桂英玉兰志伟春梅雪松"
TOWNS_ZH = ["青石", "白云", "金沙", "红叶", "长桥", "古井", "双塔", "月牙", "凤尾", "玉泉"]
TOWN_ENDINGS_ZH = "镇村城港"


def make(what: str, count: int | None, seed: int) -> list[dict[str, str]]:
    """Subjects of a table as columns: `s` always, `v` for sums, `thing` and `full` for tales."""
    if what == "sums":
        return [{"s": s, "v": str(v)} for s, v in sums()]
    if what == "titles":
        rng = random.Random(f"{seed} titles")
        pairs = rng.sample(list(product(TALE_ADJECTIVES, TALE_THINGS)), count)
        return [{"s": f"The {adjective.title()} {thing.title()}", "thing": thing, "full": f"{adjective} {thing}"}
                for adjective, thing in pairs]
    return [{"s": name} for name in names(what, seed)[:count]]


@cache
def names(what: str, seed: int) -> list[str]:
    """All names of a sort, each unique, from the seed alone."""
    return {"people": people, "towns": towns, "tools": tools, "people_zh": people_zh, "towns_zh": towns_zh}[what](
        random.Random(f"{seed} {what}"))


def fresh(count: int, draw) -> list[str]:
    """`count` different draws in the order in which they came."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def people(rng: random.Random) -> list[str]:
    """Full names whose first names are all different; a surname is shared by several people."""
    def first() -> str:
        return (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(MIDDLES) + rng.choice(ENDINGS)).title()

    def last() -> str:
        return (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(SURNAMES)).title()

    surnames = fresh(60, last)
    return [f"{name} {rng.choice(surnames)}" for name in fresh(150, first)]


def towns(rng: random.Random) -> list[str]:
    """Town names, such as Bramwick."""
    def town() -> str:
        return (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice("lmnrst") + rng.choice(TOWNS)).title()

    return fresh(56, town)


def tools(rng: random.Random) -> list[str]:
    """Names of tools that do not exist."""
    return fresh(36, lambda: rng.choice([o for o in ONSETS if o != "h"]) + rng.choice(VOWELS) + rng.choice("mnrlv")
                 + rng.choice(TOOLS))


def people_zh(rng: random.Random) -> list[str]:
    """Chinese full names of three characters."""
    return fresh(60, lambda: rng.choice(SURNAMES_ZH) + rng.choice(GIVEN_ZH) + rng.choice(GIVEN_ZH))


def towns_zh(rng: random.Random) -> list[str]:
    """Chinese names of places of three characters."""
    return fresh(24, lambda: rng.choice(TOWNS_ZH) + rng.choice(TOWN_ENDINGS_ZH))


@cache
def sums() -> list[tuple[str, int]]:
    """Sums of two numbers up to 20, small products, and sums of three small digits; no result is below zero."""
    found = {f"{a}{op}{b}": a + b if op == "+" else a - b
             for a, b, op in product(range(21), range(21), "+-") if a + b <= 20 or (op == "-" and a >= b)}
    found |= {f"{a}*{b}": a * b for a, b in product(range(2, 10), repeat=2)}
    for a, b, c in product(range(1, 8), repeat=3):
        found |= {f"{a}+{b}-{c}": a + b - c, f"{a}-{b}+{c}": a - b + c, f"{a}+{b}+{c}": a + b + c}
    return [(s, v) for s, v in found.items() if v >= 0]
