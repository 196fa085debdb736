"""The small world the demo tasks speak of: words and facts, written out so that answers are exact."""

from __future__ import annotations

ANIMALS = tuple("cat dog horse cow sheep goat lion tiger bear wolf fox rabbit mouse bird duck frog".split())
FRUITS = tuple("apple banana cherry grape lemon mango melon orange peach pear plum kiwi".split())
COLOURS = tuple("red blue green yellow black white brown pink purple grey".split())
TOOLS = tuple("hammer saw drill wrench pliers chisel shovel rake axe knife".split())
CATEGORIES = {"animal": ANIMALS, "fruit": FRUITS, "colour": COLOURS, "tool": TOOLS}
WORDS = ANIMALS + FRUITS + COLOURS + TOOLS

DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple("January February March April May June July August September October November December".split())
NAMES = tuple("Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Liam".split())

CAPITALS = dict(
    pair.split(":")
    for pair in "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Austria:Vienna "
    "Greece:Athens Poland:Warsaw Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen "
    "Ireland:Dublin Hungary:Budapest Japan:Tokyo China:Beijing Egypt:Cairo Kenya:Nairobi Cuba:Havana "
    "Peru:Lima".split()
)
OPPOSITES = dict(
    pair.split(":")
    for pair in "hot:cold big:small fast:slow old:young happy:sad light:dark high:low full:empty open:closed "
    "early:late hard:soft near:far rich:poor strong:weak wet:dry wide:narrow".split()
)
PAST_TENSES = dict(
    pair.split(":")
    for pair in "walk:walked jump:jumped play:played talk:talked look:looked run:ran go:went see:saw "
    "eat:ate take:took write:wrote sing:sang buy:bought think:thought give:gave find:found".split()
)
PLURALS = {
    **{word: word + "s" for word in ("cat", "dog", "horse", "cow", "bear", "apple", "lemon", "hammer")},
    "wolf": "wolves",
    "mouse": "mice",
    "cherry": "cherries",
    "fox": "foxes",
    "peach": "peaches",
    "knife": "knives",
    "sheep": "sheep",
    "axe": "axes",
    "banana": "bananas",
    "duck": "ducks",
}
