"""The words of the demo's titles: for every visible attribute the several ways in which shops say it."""

# How a value is said. "before": an adjective in front of the noun; "after": something the garment comes "with".
BEFORE: dict[str, dict[str, tuple[str, ...]]] = {
    "sleeve": {
        "none": ("sleeveless",),
        "short": ("short sleeve", "short-sleeved", "half sleeve"),
        "three-quarter": ("three-quarter sleeve", "3/4 sleeve"),
        "long": ("long sleeve", "long-sleeved", "full sleeve"),
    },
    "neck": {
        "round": ("crew neck", "round neck"),
        "v": ("V-neck",),
        "scoop": ("scoop neck", "low neck"),
        "square": ("square neck",),
        "collar": ("collared",),
        "hood": ("hooded",),
        "roll": ("roll neck", "turtleneck"),
        "straps": ("strappy", "spaghetti strap"),
    },
    "length": {
        "cropped": ("cropped", "short length"),
        "regular": ("",),
        "long": ("longline", "long length"),
        "full": ("full length", ""),
        "mini": ("mini", "short"),
        "short": ("short leg", "playsuit style"),
        "knee": ("knee length", "knee-length"),
        "midi": ("midi", "calf length"),
        "maxi": ("maxi", "floor length"),
    },
    "knit": {
        "plain knit": ("knitted", "fine knit"),
        "ribbed": ("ribbed", "rib knit"),
        "cable": ("cable knit", "cable-knit"),
    },
    "fit": {
        "slim": ("slim", "skinny", "slim fit"),
        "straight": ("straight leg", "regular fit"),
        "wide": ("wide leg", "loose fit"),
    },
    "shape": {
        "pencil": ("pencil", "fitted"),
        "a-line": ("A-line",),
        "flared": ("flared", "skater"),
        "pleated": ("pleated",),
        "tote": ("tote",),
        "bucket": ("bucket",),
        "round": ("round", "circle"),
        "clutch": ("clutch", "envelope"),
    },
    "height": {
        "low": ("low top", "low-cut"),
        "high": ("high top",),
        "ankle": ("ankle", "ankle high"),
        "mid": ("mid-calf",),
        "knee": ("knee-high", "tall"),
    },
    "heel": {"flat": ("flat",), "block": ("block heel",), "high": ("high heel", "stiletto")},
    "platform": {"yes": ("platform", "chunky")},
}
AFTER: dict[str, dict[str, tuple[str, ...]]] = {
    "pocket": {
        "chest": ("chest pocket", "breast pocket"),
        "side": ("side pockets", "two pockets"),
        "kangaroo": ("kangaroo pocket", "front pouch"),
        "cargo": ("cargo pockets", "thigh pockets"),
    },
    "closure": {
        "buttons": ("buttons", "button front"),
        "zip": ("zip", "zipper"),
        "laces": ("laces", "lace-up front"),
        "velcro": ("velcro straps",),
        "slip-on": ("elastic sides", "slip-on fit"),
        "buckle": ("buckle", "buckled strap"),
        "clasp": ("gold clasp", "clasp"),
    },
    "waist": {
        "belt": ("belt", "brown belt"),
        "drawstring": ("drawstring", "tie waist"),
        "button": ("button waist", "gold button"),
        "bow": ("bow", "waist bow"),
    },
    "hem": {
        "turned-up": ("turn-ups", "turned-up hems"),
        "ruffle": ("ruffle hem", "frilled hem"),
        "slit": ("side slit", "slit"),
    },
    "sole": {
        "white sole": ("white sole", "white soles"),
        "gum sole": ("gum sole", "tan soles"),
        "black sole": ("black sole", "dark soles"),
    },
    "handle": {
        "short": ("top handle", "short handle"),
        "shoulder": ("shoulder strap", "long strap"),
        "chain": ("chain strap", "gold chain"),
    },
    "extra": {"tassel": ("tassel", "red tassel"), "pocket": ("front pocket", "outer pocket")},
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {  # the plain word first: shops use it most (see `say` in catalogue.py)
    "navy": ("navy", "navy blue", "dark blue"),
    "grey": ("grey", "gray"),
    "beige": ("beige", "sand", "cream"),
    "blue": ("blue", "sky blue"),
    "red": ("red", "scarlet"),
    "purple": ("purple", "violet"),
    "turquoise": ("turquoise", "teal"),
    "yellow": ("yellow", "mustard"),
    "brown": ("brown", "chocolate"),
}
PATTERN_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # as an adjective, as what it comes with
    "horizontal stripes": (("striped", "stripe"), ("stripes", "horizontal stripes")),
    "vertical stripes": (("vertical striped", "pinstripe"), ("vertical stripes", "pinstripes")),
    "diagonal stripes": (("diagonal striped", "diagonal stripe"), ("diagonal stripes",)),
    "dots": (("polka dot", "spotted", "dotted"), ("polka dots", "dots", "spots")),
    "checks": (("checked", "plaid", "gingham"), ("checks", "check pattern")),
    "flowers": (("floral", "flower print"), ("flowers", "floral print")),
    "two-tone": (("colour block", "two-tone"), ("lower half", "colour block")),
}
BRANDS = (
    "Marlow",
    "Nordhavn",
    "Casa Lima",
    "Fern & Co",
    "Atelier Nove",
    "Kestrel",
    "Juno",
    "Brightside",
    "Oakley Lane",
    "Tidal",
)
WOMENS = ("Skirts", "Dresses", "Jumpsuits", "Handbags")
GENDERS = {"Women": ("women's", "ladies"), "Men": ("men's", "mens"), "Unisex": ("unisex",)}
USAGES = ("Casual", "Formal", "Sports", "Party")
SEASONS = ("Spring", "Summer", "Fall", "Winter")
# too close to each other to be told apart as base and second colour on a small photo
ALIKE = (
    {"black", "navy"},
    {"white", "beige"},
    {"orange", "red"},
    {"blue", "turquoise"},
    {"yellow", "beige"},
    {"brown", "purple"},
)
