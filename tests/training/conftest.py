"""A small project that every family of questions finds something in."""

from pathlib import Path

import pytest

BASKET = '''\
"""Baskets."""

import os
from dataclasses import dataclass
from typing import Protocol

LIMIT = 10
# TODO: make the limit a setting


class Priced(Protocol):
    def price(self) -> int: ...


class Named(Protocol):
    name: str


@dataclass
class Basket:
    owner: str = "nobody"

    def add(self, item: Priced, count: int = 1) -> int:
        if count > LIMIT:
            raise ValueError("too many of one item")
        total = item.price() * count
        return total

    async def send(self, address: str, retries: int = 3) -> None:
        print(address, retries, os.sep)

    @property
    def is_empty(self) -> bool:
        return not self.owner


class GiftBasket(Basket):
    pass


class UnusedThing:
    pass
'''
PAGES = '''\
"""Pages about baskets."""

from shop.basket import Basket, GiftBasket


async def show(basket: Basket, *, wide: bool = False) -> str:
    width = 80 if wide else 40
    return f"{basket.owner} {width}"


def build(owner: str) -> Basket:
    if not owner:
        raise ValueError("an owner is needed here")
    return GiftBasket(owner)
'''
README = """\
# Shop

A small shop.
It has baskets and pages.
Baskets hold items with a price.
Pages show a basket to its owner.

## Use

Build a basket, add items, send it.
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "shop-project"
    package = root / "src" / "shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A shop."""\n')
    (package / "basket.py").write_text(BASKET)
    (package / "pages.py").write_text(PAGES)
    (root / "README.md").write_text(README)
    return root
