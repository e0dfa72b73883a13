"""How each sub-category is drawn: one painter a kind, which reads the look's details and covers a sheet.

Coordinates are pixels of the 448 x 448 sheet, half-outlines (distance from the middle, y): see drawing.py.
"""

from __future__ import annotations

from fashionbert_fast.demo.garments.drawing import (
    GOLD,
    METAL,
    MIDDLE,
    Colour,
    Outline,
    Sheet,
    both,
    curve,
    mirrored,
    mix,
)

# ---- what upper garments share -------------------------------------------------------------------------------------

SLEEVE_ENDS = {  # outer end, inner end of a right sleeve
    "short": ((142, 176), (100, 194)),
    "three-quarter": ((164, 254), (124, 268)),
    "long": ((176, 334), (138, 342)),
}


def _sleeves(sheet: Sheet, top: float) -> list[Outline]:
    ends = SLEEVE_ENDS.get(sheet.get("sleeve"))
    if not ends:
        return []
    outer, inner = ends
    return list(both([(60, top + 10), (96, top + 16), (112, top + 44), outer, inner, (84, top + 90)]))


def _cuffs(sheet: Sheet, colour: Colour) -> None:
    if ends := SLEEVE_ENDS.get(sheet.get("sleeve")):
        (ox, oy), (ix, iy) = ends
        for cuff in both([(ox, oy), (ix, iy), (ix - 3, iy - 17), (ox - 5, oy - 17)]):
            sheet.fill(cuff, colour)


def _neck(sheet: Sheet, top: float, trim: Colour) -> None:
    """The neckline, over the body: what is seen inside a garment is its dark back."""
    inside = mix(sheet.base, (0, 0, 0), 0.45)
    neck = sheet.get("neck", "round")
    if neck == "round":
        rim = mirrored([*curve((36, top), (30, top + 34), (0, top + 36))])
        sheet.fill(rim, inside)
        sheet.line(rim[1:-1], colour=trim, width=8)
    elif neck == "scoop":
        rim = mirrored([*curve((50, top + 2), (46, top + 80), (0, top + 82))])
        sheet.fill(rim, sheet.background)
        sheet.line(rim[1:-1], colour=trim, width=6)
    elif neck == "v":
        rim = [(MIDDLE - 36, top), (MIDDLE, top + 78), (MIDDLE + 36, top)]
        sheet.fill(rim, inside)
        sheet.line(rim, colour=trim, width=8)
    elif neck == "roll":
        sheet.fill(mirrored([(33, top - 34), (38, top + 12)]), mix(trim, (0, 0, 0), 0.08))
        sheet.line([(MIDDLE - 35, top - 12), (MIDDLE + 35, top - 12)])
    elif neck == "collar":
        sheet.fill(mirrored([(32, top - 4), (12, top + 26)]), inside)
        for flap in both([(32, top - 12), (52, top + 30), (24, top + 44), (0, top + 22)]):
            sheet.fill(flap, mix(trim, (255, 255, 255), 0.08))
    elif neck == "hood":
        sheet.fill(
            mirrored([(20, top - 62), (50, top - 40), (60, top + 12), (24, top + 40)]), mix(trim, (0, 0, 0), 0.1)
        )
        sheet.fill(mirrored([(14, top - 42), (32, top - 26), (36, top + 6), (10, top + 28)]), inside)
        for side in (-14, 14):
            sheet.line([(MIDDLE + side, top + 32), (MIDDLE + side, top + 72)], colour=(240, 240, 240), width=4)
    elif neck == "square":
        rim = mirrored([(44, top), (44, top + 56)])
        sheet.fill(rim, sheet.background)
        sheet.line([rim[0], rim[1], rim[2], rim[3]], colour=trim, width=6)
    elif neck == "straps":
        for strap in both([(44, top - 26), (54, top - 26), (60, top + 30), (50, top + 30)]):
            sheet.fill(strap, trim)


def _closure(sheet: Sheet, top: float, bottom: float) -> None:
    closure = sheet.get("closure")
    if closure == "buttons":
        sheet.line([(MIDDLE - 9, top), (MIDDLE - 9, bottom)], width=2)
        sheet.line([(MIDDLE + 9, top), (MIDDLE + 9, bottom)], width=2)
        button = (245, 243, 236) if sum(sheet.base) < 420 else (60, 50, 46)
        for y in range(round(top + 12), round(bottom - 6), 34):
            sheet.disc(MIDDLE, y, 6.5, button)
    elif closure == "zip":
        sheet.line([(MIDDLE, top), (MIDDLE, bottom)], colour=(70, 70, 74), width=12)
        sheet.line([(MIDDLE, top), (MIDDLE, bottom)], colour=(214, 214, 218), width=6)
        sheet.fill(mirrored([(5, top + 10), (7, top + 34)]), METAL)


def _pockets(sheet: Sheet, chest_y: float, side_y: float, spread: float = 46) -> None:
    pocket = sheet.get("pocket")
    face = mix(sheet.base, (0, 0, 0) if sum(sheet.base) > 200 else (255, 255, 255), 0.13)
    if pocket == "chest":
        x = MIDDLE + 24
        sheet.fill(
            [(x, chest_y), (x + 42, chest_y), (x + 42, chest_y + 38), (x + 21, chest_y + 48), (x, chest_y + 38)], face
        )
    elif pocket == "side":
        for patch in both(
            [(spread - 26, side_y), (spread + 26, side_y), (spread + 26, side_y + 46), (spread - 26, side_y + 46)]
        ):
            sheet.fill(patch, face)
    elif pocket == "kangaroo":
        sheet.fill(mirrored([(34, side_y), (62, side_y + 52)]), face)


TOP_HEMS = {"cropped": 250, "regular": 318, "long": 382}


def draw_top(sheet: Sheet) -> None:
    """T-shirts, shirts, sweaters and jackets: a body, two sleeves, a neck, a front."""
    top, hem = 84, TOP_HEMS[sheet.get("length", "regular")]
    wide = {"slim": 76, "loose": 102}.get(sheet.get("fit"), 88)
    shoulder = 96 if sheet.get("sleeve") != "none" else 78
    trimmed = sheet.look.pattern == "plain" and sheet.look.second is not None
    trim = sheet.second if trimmed else sheet.base
    body = [(36, top), (shoulder, top + 16), (wide - 8, top + 80), (wide - 4, (top + hem) / 2), (wide, hem)]
    if sheet.get("neck") == "straps":
        body = [(0, top + 30), (58, top + 26), (70, top + 76), *body[3:]]
    sheet.cloth(*_sleeves(sheet, top), mirrored(body), split_y=(top + hem) / 2 + 8)
    ribbed = sheet.get("knit") == "ribbed"
    if ribbed:
        for x in range(-60, 61, 15):
            sheet.line([(MIDDLE + x, top + 40), (MIDDLE + x, hem)], width=2)
    elif sheet.get("knit") == "cable":
        for x in (-38, 0, 38):
            for sign in (-1, 1):
                zigzag = [(MIDDLE + x + sign * (9 if i % 2 else -9), y) for i, y in enumerate(range(top + 44, hem, 18))]
                sheet.line(zigzag, width=4)
    if trimmed or sheet.get("knit"):
        _cuffs(sheet, trim)
        sheet.fill(mirrored([(wide - 1, hem - 18), (wide, hem)]), trim)
    neck_end = {"v": 78, "hood": 30, "collar": 30, "scoop": 82}.get(sheet.get("neck"), 34)
    _closure(sheet, top + neck_end, hem)
    _neck(sheet, top, trim)
    _pockets(sheet, top + 74, hem - 76)


# ---- lower garments ------------------------------------------------------------------------------------------------

LEG_HEMS = {"mini": 190, "short": 200, "knee": 246, "cropped": 320, "full": 392}
LEG_WIDTHS = {"slim": (30, 62), "straight": (22, 76), "wide": (12, 112)}


def _legs(waist_y: float, waist: float, hem: float, inner: float, outer: float) -> list[tuple[float, float]]:
    crotch = waist_y + 88
    hip = max(waist + 12, min(outer, waist + 22))
    right = [(waist, waist_y), (hip, waist_y + 60), (outer, hem), (inner, hem), (2, crotch)]
    return mirrored(right)


def draw_legs(sheet: Sheet) -> None:
    """Trousers and shorts."""
    waist_y = 84
    hem = LEG_HEMS[sheet.get("length", "full")]
    inner, outer = LEG_WIDTHS[sheet.get("fit", "straight")]
    if hem < 300:
        hem, waist_y, outer = hem + 70, 120, min(outer, 96)
    outline = _legs(waist_y, 56, hem, min(inner, 14) if hem < 330 and waist_y > 100 else inner, outer)
    sheet.cloth(outline, split_y=(waist_y + hem) / 2)
    trim = sheet.second if sheet.look.pattern == "plain" and sheet.look.second else None
    sheet.fill(mirrored([(56, waist_y), (58, waist_y + 18)]), mix(sheet.base, (0, 0, 0), 0.15))
    if trim:  # a stripe down the outer seam
        hip = max(68, min(outer, 78))
        for x_sign in (-1, 1):
            seam = [(56, waist_y + 18), (hip, waist_y + 60), (outer, hem)]
            sheet.line([(MIDDLE + x_sign * (x - 5), y) for x, y in seam], colour=trim, width=11)
    sheet.line([(MIDDLE, waist_y + 18), (MIDDLE, waist_y + 88)])
    _waist(sheet, waist_y)
    if sheet.get("pocket") == "cargo":
        y = min(waist_y + 140, hem - 66)
        for patch in both([(34, y), (72, y), (74, y + 46), (34, y + 46)]):
            sheet.fill(patch, mix(sheet.base, (0, 0, 0), 0.14))
            sheet.line([(patch[0][0], y + 14), (patch[1][0], y + 14)])
    elif sheet.get("pocket") == "side":
        for x_sign in (-1, 1):
            sheet.line([(MIDDLE + x_sign * 34, waist_y + 20), (MIDDLE + x_sign * 62, waist_y + 58)], width=6)
    if sheet.get("hem") == "turned-up":
        for cuff in both(
            [
                (min(inner, 14) if hem < 330 and waist_y > 100 else inner, hem),
                (outer + 3, hem),
                (outer + 1, hem - 24),
                (inner, hem - 24),
            ]
        ):
            sheet.fill(cuff, mix(sheet.base, (255, 255, 255), 0.45))


def _waist(sheet: Sheet, waist_y: float) -> None:
    waist = sheet.get("waist")
    if waist == "belt":
        sheet.fill(mirrored([(57, waist_y + 1), (59, waist_y + 20)]), (92, 56, 34))
        sheet.fill(mirrored([(12, waist_y - 2), (12, waist_y + 23)]), GOLD)
    elif waist == "drawstring":
        for side in (-1, 1):
            sheet.line([(MIDDLE, waist_y + 12), (MIDDLE + side * 14, waist_y + 62)], colour=(246, 246, 246), width=6)
    elif waist == "button":
        sheet.disc(MIDDLE, waist_y + 10, 8, GOLD)


def _skirt(sheet: Sheet, top: float, hem: float, waist: float) -> tuple[list[tuple[float, float]], float]:
    spread = {"pencil": 0.04, "a-line": 0.26, "flared": 0.44, "pleated": 0.34}[sheet.get("shape", "a-line")]
    foot = waist + 20 + spread * (hem - top)
    floor = [*curve((foot, hem), (foot * 0.5, hem + 14), (0, hem + 15), steps=4)]
    return mirrored([(waist, top), (waist + 20, top + 46), *floor]), foot


def _skirt_details(sheet: Sheet, top: float, hem: float, waist: float, foot: float) -> None:
    if sheet.get("shape") == "pleated":
        for i in range(-3, 4):
            sheet.line([(MIDDLE + i * waist / 3.6, top + 16), (MIDDLE + i * foot / 3.6, hem + 8)], width=5)
    if sheet.get("hem") == "ruffle":
        wave = [(MIDDLE + foot * (i / 8 - 1), hem + (14 if i % 2 else -8)) for i in range(17)]
        sheet.line(wave, colour=sheet.second if sheet.look.second else sheet.seam, width=10)
    if sheet.get("hem") == "slit":
        x = MIDDLE + foot * 0.5
        sheet.fill([(x, hem - 90), (x + 16, hem + 14), (x - 8, hem + 14)], sheet.background)


SKIRT_HEMS = {"mini": 226, "knee": 292, "midi": 344, "maxi": 400}


def draw_skirt(sheet: Sheet) -> None:
    top, hem, waist = 92, SKIRT_HEMS[sheet.get("length", "knee")] - 12, 56
    outline, foot = _skirt(sheet, top, hem, waist)
    sheet.cloth(outline, split_y=(top + hem) / 2)
    _skirt_details(sheet, top, hem, waist, foot)
    band = sheet.second if sheet.look.pattern == "plain" and sheet.look.second else mix(sheet.base, (0, 0, 0), 0.15)
    sheet.fill(mirrored([(waist, top), (waist + 3, top + 20)]), band)
    _waist(sheet, top)
    _closure(sheet, top + 22, hem)
    _pockets(sheet, 0, top + 44, spread=42)


def draw_dress(sheet: Sheet) -> None:
    top, waist_y, waist = 64, 190, 58
    hem = {"mini": 266, "knee": 312, "midi": 356, "maxi": 410}[sheet.get("length", "knee")]
    shoulder = 88 if sheet.get("sleeve") != "none" else 72
    bodice = [(36, top), (shoulder, top + 14), (72, top + 70), (waist, waist_y)]
    if sheet.get("neck") == "straps":
        bodice = [(0, top + 30), (56, top + 26), (66, top + 70), (waist, waist_y)]
    outline, foot = _skirt(sheet, waist_y, hem, waist)
    panels = [*_sleeves(sheet, top), mirrored(bodice), outline]
    sheet.cloth(*panels, split_y=waist_y)
    _skirt_details(sheet, waist_y, hem, waist, foot)
    trim = sheet.second if sheet.look.pattern == "plain" and sheet.look.second else sheet.base
    if trim != sheet.base:
        _cuffs(sheet, trim)
    if sheet.get("waist") == "belt":
        _waist(sheet, waist_y - 10)
    elif sheet.get("waist") == "bow":
        for loop in both([(4, waist_y), (40, waist_y - 22), (40, waist_y + 20)]):
            sheet.fill(loop, trim)
        sheet.disc(MIDDLE, waist_y, 9, trim)
    _closure(
        sheet,
        top + {"v": 78, "collar": 30}.get(sheet.get("neck"), 34),
        waist_y if sheet.get("closure") == "zip" else hem,
    )
    _neck(sheet, top, trim)


def draw_jumpsuit(sheet: Sheet) -> None:
    top, waist_y, waist = 56, 176, 56
    hem = {"short": 276, "cropped": 344, "full": 402}[sheet.get("length", "full")]
    inner, outer = LEG_WIDTHS[sheet.get("fit", "straight")]
    shoulder = 86 if sheet.get("sleeve") != "none" else 70
    bodice = [(36, top), (shoulder, top + 14), (70, top + 70), (waist, waist_y)]
    if sheet.get("neck") == "straps":
        bodice = [(0, top + 30), (56, top + 26), (66, top + 70), (waist, waist_y)]
    legs = _legs(waist_y, waist, hem, min(inner, 22), min(outer, 100))
    sheet.cloth(*_sleeves(sheet, top), mirrored(bodice), legs, split_y=waist_y)
    trim = sheet.second if sheet.look.pattern == "plain" and sheet.look.second else sheet.base
    if trim != sheet.base:
        _cuffs(sheet, trim)
    _closure(sheet, top + {"v": 78, "collar": 30}.get(sheet.get("neck"), 34), waist_y + 70)
    if sheet.get("waist") in ("belt", "drawstring"):
        _waist(sheet, waist_y - 10)
    _pockets(sheet, top + 64, waist_y + 60, spread=44)
    _neck(sheet, top, trim)


# ---- shoes and bags ------------------------------------------------------------------------------------------------

SOLES: dict[str, Colour] = {"white sole": (248, 248, 246), "gum sole": (196, 140, 84), "black sole": (40, 40, 42)}


def draw_sneaker(sheet: Sheet) -> None:
    """Seen from the side, the toe to the right."""
    collar = 128 if sheet.get("height") == "high" else 190
    vamp = curve((206, collar + 18), (270, 250), (356, 262))
    upper = [(78, collar), (140, collar + 16), (200, collar - 4), *vamp, (396, 290), (394, 316), (62, 316), (66, 240)]
    sheet.cloth(upper, split_y=258)
    sole = SOLES[sheet.get("sole", "white sole")]
    thick = 50 if sheet.get("platform") == "yes" else 26
    sheet.fill([(56, 304), (402, 304), (404, 310 + thick * 0.6), (390, 306 + thick), (60, 306 + thick)], sole)
    trim = sheet.second if sheet.look.pattern == "plain" and sheet.look.second else None
    if trim:  # a contrasting heel and toe
        sheet.fill([(66, 240), (112, 246), (116, 302), (62, 302)], trim)
        sheet.fill([(330, 262), (358, 262), (396, 290), (394, 302), (322, 302)], trim)
    if sheet.get("closure") == "laces":
        for i in range(4):
            x, y = 214 + i * 26, collar + 34 + i * (226 - collar) / 4.4
            sheet.line([(x - 22, y + 14), (x + 12, y - 6)], colour=(250, 250, 250), width=8)
            sheet.line([(x - 22, y + 19), (x + 12, y - 1)], colour=(90, 90, 90), width=2)
    elif sheet.get("closure") == "velcro":
        for i in range(2):
            x, y = 204 + i * 46, collar + 46 + i * (212 - collar) / 2.4
            sheet.fill([(x - 44, y + 20), (x + 24, y - 16), (x + 34, y + 4), (x - 36, y + 42)], (70, 70, 74))
    elif sheet.get("closure") == "slip-on":
        sheet.fill([(160, collar + 12), (196, collar + 2), (226, 238), (186, 262)], (60, 60, 64))


def draw_boot(sheet: Sheet) -> None:
    top = {"ankle": 206, "mid": 146, "knee": 64}[sheet.get("height", "mid")]
    wide = 8 if sheet.get("height") == "knee" else 0
    vamp = curve((234, 258), (268, 284), (342, 296))
    shaft = [(110 - wide, top), (240 + wide, top), *vamp, (372, 320), (372, 344), (104, 344), (112, 280)]
    sheet.cloth(shaft, split_y=256)
    dark = (44, 36, 32)
    heel = sheet.get("heel", "flat")
    if heel == "high":
        sheet.fill([(104, 338), (148, 338), (132, 400), (112, 400)], dark)
        sheet.fill([(148, 338), (376, 338), (374, 350), (190, 352)], dark, seam=False)
    elif heel == "block":
        sheet.fill([(102, 338), (182, 338), (180, 384), (102, 384)], dark)
        sheet.fill([(180, 338), (378, 338), (376, 352), (180, 352)], dark, seam=False)
    else:
        sheet.fill([(100, 338), (378, 338), (376, 356), (102, 356)], dark)
    if trim := (sheet.second if sheet.look.pattern == "plain" and sheet.look.second else None):
        sheet.fill([(106 - wide, top - 6), (244 + wide, top - 6), (244 + wide, top + 26), (106 - wide, top + 26)], trim)
    closure = sheet.get("closure")
    if closure == "laces":
        for y in range(round(max(top + 34, 176)), 286, 22):
            sheet.line([(206, y), (240, y + 12)], colour=(244, 240, 230), width=7)
            sheet.line([(206, y + 12), (240, y)], colour=(244, 240, 230), width=7)
    elif closure == "zip":
        sheet.line([(176, top + 30), (176, 326)], colour=(60, 60, 64), width=12)
        sheet.line([(176, top + 30), (176, 326)], colour=(222, 222, 226), width=6)
    elif closure == "buckle":
        sheet.fill([(108, 256), (240, 256), (246, 280), (110, 280)], (60, 44, 36))
        sheet.fill([(196, 250), (228, 250), (228, 286), (196, 286)], GOLD)


def draw_bag(sheet: Sheet) -> None:
    shape, top = sheet.get("shape", "tote"), 190
    leather = (108, 70, 44) if sheet.look.base != "brown" else (40, 36, 36)
    trim = sheet.second if sheet.look.pattern == "plain" and sheet.look.second else leather
    handle = sheet.get("handle", "short")
    if handle == "short":
        arch = mirrored(curve((58, top + 6), (58, 92), (0, 92)))
        sheet.line(arch, colour=trim, width=15)
    elif handle == "shoulder":
        arch = mirrored(curve((92, top + 6), (92, 24), (0, 24)))
        sheet.line(arch, colour=trim, width=11)
    elif handle == "chain":
        for x, y in mirrored(curve((96, top + 6), (104, 30), (0, 30), steps=13)):
            sheet.disc(x, y, 9, GOLD)
    body = {
        "tote": mirrored([(118, top), (140, 378)]),
        "bucket": mirrored([(86, top - 10), (100, 300), (92, 372), (70, 388)]),
        "round": mirrored(
            [
                (0, top - 12),
                *curve((60, top - 8), (116, top + 14), (120, 286)),
                *curve((120, 286), (112, 384), (0, 390)),
            ]
        ),
        "clutch": mirrored([(144, top + 34), (146, 346)]),
    }[shape]
    sheet.cloth(body, split_y=290)
    sheet.centre_y = {"": 284, "short": 246}.get(handle, 214)
    if shape == "clutch":
        sheet.line([(MIDDLE - 144, top + 34), (MIDDLE, 300), (MIDDLE + 144, top + 34)], width=5)
    closure = sheet.get("closure")
    if closure == "zip":
        sheet.line([(MIDDLE - 84, top + 54), (MIDDLE + 84, top + 54)], colour=(60, 60, 64), width=13)
        sheet.line([(MIDDLE - 84, top + 54), (MIDDLE + 84, top + 54)], colour=(222, 222, 226), width=6)
    elif closure == "buckle":
        sheet.fill(mirrored([(17, top + 4), (17, top + 112)]), trim)
        sheet.fill(mirrored([(24, top + 76), (24, top + 106)]), GOLD)
    elif closure == "clasp":
        sheet.disc(MIDDLE, 296, 17, GOLD)
    if sheet.get("extra") == "tassel":
        for x in (-7, 0, 7):
            sheet.line([(MIDDLE + 78, top + 40), (MIDDLE + 78 + x * 1.6, top + 118)], colour=(186, 52, 60), width=6)
        sheet.disc(MIDDLE + 78, top + 40, 9, GOLD)
    elif sheet.get("extra") == "pocket":
        sheet.fill(mirrored([(62, 318), (62, 368)]), mix(sheet.base, (0, 0, 0), 0.16))
