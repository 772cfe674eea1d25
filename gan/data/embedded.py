"""What the embedded data sets hold: their characters, their styles, and whose they are."""

from typing import NamedTuple

REGION_NEUTRAL = (
    "一丁丈三上下不且丙中串丹主久乍乎乙九乞乾予事二井什仁仇仕付代仲件伊伏伐休伯伴伸伺"
    "佃但佐佑何作佳使供便促俄借僚元兄兆先光克共其典兼再冗冠凡刀刊刑利制刷刺副力功加助"
    "勺勿十千升午半卓南卜占危厄友叔受口古句召可史右司吃各吉吊同吏吐向君吠否吻告味呼咋"
    "和品哉哩唱喜嗣回固圃土在圭坐坤坦坪型垣埋城域埠基堂堤士大夫失奇奔寸封小尚尾尿局岸"
    "川工左己巳巴巷巾布帆希帖常幅幌干平年弄式形彩彬彼征律徒得必怖思性怪恭悼惑惜想戊成"
    "我戒或戚戴手打扶技把披抹押抽拍拓拘招括拭挑挫挽捉捕捷授掌措提援攻政故斗日旦早旬旭"
    "旺昌明易昔星昧昨昭是晃晒晶智暇暑暖暴曙曲曳更曹月朋服朝期木未末札朱杉材村杖杜束杯"
    "林枚果枯柄柏柑株格栽桂桃桐桓桔桶梗械棉棋棚椅槽止正武歪毛永汀汁汗江汽沃沈沫河油沼"
    "泉泊波泳洗洛洞津洪活浦浩涌涯淋淑湘潮照煮爽牛牡牧物牲犬犯狂狗狙狸玉王玖玩珠理琳甘"
    "生甥用甫田由甲申男界畔略畦白百的皇皮皿盛盟目相眉看眺矛矢知石研砧破硬碧禾科租秩稀"
    "穆竹署群者而耐肉自虹蛋蛙蛾蜂蜘血行街赦赫走超足路跳踏那郡都采里重野量阜阻阿附面革"
    "鞭首"
)
"""The 442 everyday characters with one shape in every region, by code point.

Common to the first levels of GB 2312, JIS X 0208 and Big5 (1,583), and drawn by one glyph in the
JP, SC and TC faces of both Noto Sans CJK and Noto Serif CJK. Characters whose form differs by
region are absent, a biased sample.
"""

LEVEL_RULE = "in level 1 of GB 2312, JIS X 0208 and Big5"

REGION_RULE = (
    f"{LEVEL_RULE}, and one glyph in the JP, SC and TC faces of both "
    "Noto Sans CJK and Noto Serif CJK"
)

ALLOWED_LICENCES = {
    "OFL-1.1",
    "Apache-2.0",
    "MIT",
    "BSD-3-Clause",
    "public-domain",
    "IPA",
    "Arphic-1999",
    "GPL-2.0-only WITH Font-exception-2.0",
}
"""Licences under which a style may be embedded, by SPDX name where there is one."""


class Package(NamedTuple):
    """A package of fonts: the family its styles count to, its licence and copyright line."""

    family: str
    licence: str
    copyright: str


class Pick(NamedTuple):
    """One embedded style: the package, the file name and the number of the face in the file."""

    package: str
    file: str
    face: int = 0


_ARPHIC = "1994-1999 Arphic Technology Co., Ltd."
_AOYAGI = "Kouzan Aoyagi (dedicated to the public domain)"
_MPLUS = "2002-2022 The M+ FONTS Project Authors"

PACKAGES = {
    "fonts-aoyagi-kouzan-t": Package("aoyagi", "public-domain", _AOYAGI),
    "fonts-aoyagi-soseki": Package("aoyagi", "public-domain", "Soseki Aoyagi, " + _AOYAGI),
    "fonts-arphic-gbsn00lp": Package("arphic-song", "Arphic-1999", _ARPHIC),
    "fonts-arphic-gkai00mp": Package("arphic-kai", "Arphic-1999", _ARPHIC),
    "fonts-arphic-ukai": Package("arphic-kai", "Arphic-1999", _ARPHIC + "; changes by Arne Goetje"),
    "fonts-arphic-uming": Package(
        "arphic-song", "Arphic-1999", _ARPHIC + "; changes by Arne Goetje"
    ),
    "fonts-dejima-mincho": Package("dejima", "MIT", "2007-2010 Yoshiki Hayashi"),
    "fonts-dotgothic16": Package("dotgothic", "OFL-1.1", "2020 The DotGothic16 Project Authors"),
    "fonts-ipafont-mincho": Package(
        "ipa",
        "IPA",
        "2020-2021 Japanese Character Information Technology Promotion Council (CITPC)",
    ),
    "fonts-kiloji": Package("kiloji", "BSD-3-Clause", "2007 きろのの"),
    "fonts-konatu": Package("konatu", "MIT", "2007-2012 Mitiya Masuda"),
    "fonts-kouzan-mouhitsu": Package("aoyagi", "public-domain", _AOYAGI),
    "fonts-morisawa-bizud-gothic": Package(
        "bizud", "OFL-1.1", "2022 The BIZ UDGothic Project Authors"
    ),
    "fonts-morisawa-bizud-mincho": Package(
        "bizud", "OFL-1.1", "2022 The BIZ UDMincho Project Authors"
    ),
    "fonts-motoya-l-cedar": Package("motoya", "Apache-2.0", "2010-2012 Motoya Co., Ltd."),
    "fonts-motoya-l-maruberi": Package("motoya", "Apache-2.0", "2010-2012 Motoya Co., Ltd."),
    "fonts-mplus": Package("mplus", "OFL-1.1", _MPLUS),
    "fonts-reggae": Package("reggae", "OFL-1.1", "2020 The Reggae Project Authors"),
    "fonts-sawarabi-mincho": Package("sawarabi", "OFL-1.1", "2008-2019 mshio"),
    "fonts-seto": Package("seto", "OFL-1.1", "2003-2014 Nozomi Seto"),
    "fonts-smiley-sans": Package("smiley", "OFL-1.1", "2022 atelierAnchor"),
    "fonts-train": Package("train", "OFL-1.1", "2020 The Train Project Authors"),
    "fonts-wqy-microhei": Package(
        "droid",
        "Apache-2.0",
        "2006-2009 Google Corporation, Ascender Corp. and The WenQuanYi Project",
    ),
    "fonts-wqy-zenhei": Package(
        "zenhei",
        "GPL-2.0-only WITH Font-exception-2.0",
        "1998-2009 Qianqian Fang, The WenQuanYi Project and others",
    ),
}
"""The series of a foundry or calligrapher is one family: no split between styles may part it."""

PROTOTYPE = "wqy-zenhei"

STYLES = {
    "aoyagi-kouzan": Pick("fonts-aoyagi-kouzan-t", "AoyagiKouzanT.ttf"),
    "aoyagi-soseki": Pick("fonts-aoyagi-soseki", "aoyagi-soseki.ttf"),
    "bizud-gothic": Pick("fonts-morisawa-bizud-gothic", "BIZUDGothic-Regular.ttf"),
    "bizud-gothic-bold": Pick("fonts-morisawa-bizud-gothic", "BIZUDGothic-Bold.ttf"),
    "bizud-mincho": Pick("fonts-morisawa-bizud-mincho", "BIZUDMincho-Regular.ttf"),
    "dejima-mincho": Pick("fonts-dejima-mincho", "dejima-mincho-r227.ttf"),
    "dotgothic16": Pick("fonts-dotgothic16", "DotGothic16-Regular.ttf"),
    "gbsn": Pick("fonts-arphic-gbsn00lp", "gbsn00lp.ttf"),
    "gkai": Pick("fonts-arphic-gkai00mp", "gkai00mp.ttf"),
    "ipa-mincho": Pick("fonts-ipafont-mincho", "ipam.ttf"),
    "kiloji": Pick("fonts-kiloji", "kiloji.ttf"),
    "kiloji-b": Pick("fonts-kiloji", "kiloji_b.ttf"),
    "kiloji-d": Pick("fonts-kiloji", "kiloji_d.ttf"),
    "konatu": Pick("fonts-konatu", "Konatu.ttf"),
    "kouzan-mouhitsu": Pick("fonts-kouzan-mouhitsu", "kouzan-mouhitsu.ttf"),
    "kouzan-mouhitsu-gyosho": Pick("fonts-kouzan-mouhitsu", "kouzan-mouhitsu-gyosho.ttf"),
    "kouzan-mouhitsu-sosho": Pick("fonts-kouzan-mouhitsu", "KouzanBrushFontSousyo.ttf"),
    "motoya-cedar": Pick("fonts-motoya-l-cedar", "MTLc3m.ttf"),
    "motoya-maruberi": Pick("fonts-motoya-l-maruberi", "MTLmr3m.ttf"),
    "mplus-black": Pick("fonts-mplus", "Mplus1-Black.otf"),
    "mplus-bold": Pick("fonts-mplus", "Mplus1-Bold.otf"),
    "mplus-regular": Pick("fonts-mplus", "Mplus1-Regular.otf"),
    "mplus-thin": Pick("fonts-mplus", "Mplus1-Thin.otf"),
    "reggae": Pick("fonts-reggae", "ReggaeOne-Regular.ttf"),
    "sawarabi-mincho": Pick("fonts-sawarabi-mincho", "sawarabi-mincho-medium.ttf"),
    "seto": Pick("fonts-seto", "setofont.ttf"),
    "smiley-sans": Pick("fonts-smiley-sans", "SmileySans-Oblique.ttf"),
    "train": Pick("fonts-train", "TrainOne-Regular.ttf"),
    "ukai": Pick("fonts-arphic-ukai", "ukai.ttc"),
    "uming": Pick("fonts-arphic-uming", "uming.ttc"),
    "wqy-microhei": Pick("fonts-wqy-microhei", "wqy-microhei.ttc"),
    "wqy-zenhei": Pick("fonts-wqy-zenhei", "wqy-zenhei.ttc"),
}
"""32 distinct designs (mean ink difference above 0.02), by the id that names style and sheet."""

WEB_PROTOTYPE = "noto-sans-jp-400"

_ZEN = "2021-2022 The Zen Project Authors"
_WEB: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "dela-gothic-one@5.3.0": ("dela", "2020 The Dela Gothic Project Authors", ()),
    "ibm-plex-sans-jp@5.3.0": ("plex", "2018 IBM Corp.", (100, 700)),
    "kaisei-opti@5.2.8": ("kaisei", "2020 The Kaisei Project Authors", (400, 700)),
    "kiwi-maru@5.3.0": ("kiwi", "2020 The Kiwi Maru Project Authors", (300, 500)),
    "line-seed-jp@5.3.1": ("line", "LY Corporation", (100, 400, 800)),
    "liu-jian-mao-cao@5.3.0": ("liu-jian", "2018 The Liu Jian Mao Cao Project Authors", ()),
    "long-cang@5.3.0": ("long-cang", "2018 The LongCang Project Authors", ()),
    "ma-shan-zheng@5.3.1": ("ma-shan", "2018 The MaShanZheng Project Authors", ()),
    "noto-sans-jp@5.3.0": ("source", "2014-2021 Adobe", (100, 400, 900)),
    "noto-serif-jp@5.3.0": ("source", "2017-2024 Adobe", (200, 500, 900)),
    "sawarabi-gothic@5.3.1": ("sawarabi", "2016 The Sawarabi Gothic Project Authors", ()),
    "shippori-mincho@5.3.0": ("shippori", "2021 The Shippori Mincho Project Authors", (400, 800)),
    "yomogi@5.3.0": ("yomogi", "2020 The Yomogi Project Authors", ()),
    "yusei-magic@5.3.0": ("yusei", "2020 The Yusei Magic Project Authors", ()),
    "zcool-kuaile@5.3.0": ("zcool", "2018 The ZCOOL KuaiLe Project Authors", ()),
    "zcool-qingke-huangyou@5.3.0": ("zcool", "2018 The ZCOOL QingKe HuangYou Project Authors", ()),
    "zcool-xiaowei@5.3.0": ("zcool", "2018 The ZCOOL XiaoWei Project Authors", ()),
    "zen-kaku-gothic-new@5.3.0": ("zen", _ZEN, (300, 900)),
    "zen-kurenaido@5.3.0": ("zen", _ZEN, ()),
    "zen-maru-gothic@5.3.0": ("zen", _ZEN, (500,)),
    "zen-old-mincho@5.3.0": ("zen", _ZEN, (400, 900)),
    "zhi-mang-xing@5.3.0": ("zhi-mang", "2018 The ZhiMangXing Project Authors", ()),
}
"""npm packages `@fontsource/NAME@VERSION`: family, copyright, which weights; all are OFL-1.1."""

PACKAGES |= {
    f"@fontsource/{name}": Package(family, "OFL-1.1", copyright)
    for name, (family, copyright, _) in _WEB.items()
}

WEB_STYLES = {
    id: Pick(f"@fontsource/{name}", f"{id}.ttf")
    for name, (*_, weights) in _WEB.items()
    for font in [name.partition("@")[0]]
    for id in [f"{font}-{weight}" for weight in weights] or [font]
}
"""34 more designs, none of them among `STYLES`: what `hanzi-web` holds."""

EVERY = 12
"""In `hanzi-more` a style has one in so many characters; the standard font has all of them."""
